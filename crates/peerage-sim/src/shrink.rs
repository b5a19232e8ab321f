//! Makes a failing plan short: operations are left out while the same invariant is still broken.

use crate::plan::Plan;
use crate::run::run;

/// Most runs that are spent on one failure.
const MAX_RUNS: usize = 400;

/// Returns the shortest plan found that still breaks the invariant.
pub fn shrink(plan: &Plan, invariant: &str) -> Plan {
    shrink_while(plan, |plan| {
        run(plan)
            .is_ok_and(|report| report.violation.is_some_and(|violation| violation.invariant == invariant))
    })
}

fn shrink_while(plan: &Plan, mut still_fails: impl FnMut(&Plan) -> bool) -> Plan {
    let operations = shrink_list(plan.operations.clone(), |operations| {
        still_fails(&Plan { operations: operations.to_vec(), ..plan.clone() })
    });
    Plan { operations, ..plan.clone() }
}

/// Leaves out parts of a list, halves first and single entries last, while it still fails.
pub(crate) fn shrink_list<T: Clone>(list: Vec<T>, mut still_fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = list;
    let mut runs = 0;
    let mut piece = best.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        let mut has_shrunk = false;
        while at < best.len() && runs < MAX_RUNS {
            runs += 1;
            let mut shorter = best.clone();
            let end = at.saturating_add(piece).min(shorter.len());
            shorter.drain(at..end);
            if still_fails(&shorter) {
                best = shorter;
                has_shrunk = true;
            } else {
                at = end;
            }
        }
        if !(has_shrunk && piece == 1) {
            piece /= 2;
        }
        if runs >= MAX_RUNS {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Operation;

    #[test]
    fn only_the_operations_that_matter_are_left() {
        let mut plan = Plan::draw(3);
        let at = plan.operations.len() / 2;
        let needed = [Operation::Backup { host: 77 }, Operation::Restore { host: 77 }];
        for operation in needed {
            plan.operations.insert(at, (plan.calm_at, operation));
        }
        let left = |plan: &Plan| plan.operations.iter().map(|(_, operation)| *operation).collect::<Vec<_>>();
        let fails = |plan: &Plan| needed.iter().all(|operation| left(plan).contains(operation));
        let short = shrink_while(&plan, fails);
        assert_eq!(short.operations.len(), 2, "{:?}", short.operations);
        assert!(fails(&short));
    }
}
