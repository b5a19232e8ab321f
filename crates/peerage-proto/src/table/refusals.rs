//! What was refused to whom, counted for the operator.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use peerage_wire::id::Domain;
use peerage_wire::limits::MAX_LIST;
use peerage_wire::message::{Refused, RefusedReason};

/// Most pairs of domain and reason that are counted apart. An operator hears of sixteen in each report, the most refused first;
/// more would only remember who is hardly refused anything.
pub const MAX_REFUSED_DOMAINS: usize = 256;

/// How often something was refused since the last report, by domain and reason (Rule 4.10).
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    counts: BTreeMap<(Domain, RefusedReason), u32>,
}

impl Refusals {
    /// Counts one. When as many domains are known as may be, the one that was refused the least is forgotten for a new one: who
    /// is refused all the time stays.
    pub fn count(&mut self, domain: Domain, reason: RefusedReason) {
        self.add(domain, reason, 1);
    }

    /// Returns whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Takes out what was refused the most, at most [`MAX_LIST`] entries, for one report.
    pub fn report(&mut self) -> Vec<Refused> {
        let mut all: Vec<_> = self
            .counts
            .iter()
            .map(|((domain, reason), count)| Refused { domain: *domain, reason: *reason, count: *count })
            .collect();
        all.sort_by_key(|refused| Reverse(refused.count));
        all.truncate(MAX_LIST);
        for refused in &all {
            self.counts.remove(&(refused.domain, refused.reason));
        }
        all
    }

    /// Takes a report back that nobody noted.
    pub fn put_back(&mut self, report: Vec<Refused>) {
        for refused in report {
            self.add(refused.domain, refused.reason, refused.count);
        }
    }

    /// Counts several at once.
    pub fn add(&mut self, domain: Domain, reason: RefusedReason, times: u32) {
        let key = (domain, reason);
        if !self.counts.contains_key(&key) && self.counts.len() >= MAX_REFUSED_DOMAINS {
            let least = self.counts.iter().min_by_key(|(_, count)| **count).map(|(key, _)| *key);
            least.map(|key| self.counts.remove(&key));
        }
        let count = self.counts.entry(key).or_default();
        *count = count.saturating_add(times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 4.10: a report has sixteen entries at the most, and the rest is not lost.
    #[test]
    fn the_most_refused_are_reported_first_and_the_rest_next() {
        let mut refusals = Refusals::default();
        for domain in 0..20 {
            for _ in 0..=domain {
                refusals.count(Domain(domain), RefusedReason::Quota);
            }
        }
        let first = refusals.report();
        assert_eq!(first.len(), MAX_LIST);
        assert_eq!(first[0], Refused { domain: Domain(19), reason: RefusedReason::Quota, count: 20 });
        let second = refusals.report();
        assert_eq!(second.iter().map(|refused| refused.domain.0).collect::<Vec<_>>(), [3, 2, 1, 0]);
        assert!(refusals.is_empty());
        refusals.put_back(second);
        refusals.count(Domain(3), RefusedReason::Quota);
        assert_eq!(refusals.report()[0].count, 5);
    }

    /// Rule 4.10: however many domains are refused something, the memory for it has a bound, and the worst stays in it.
    #[test]
    fn a_flood_of_domains_does_not_hide_the_one_that_is_refused_all_the_time() {
        let mut refusals = Refusals::default();
        for _ in 0..10 {
            refusals.count(Domain(7), RefusedReason::Rate);
        }
        for domain in 100..10_000 {
            refusals.count(Domain(domain), RefusedReason::NotMember);
        }
        assert!(refusals.counts.len() <= MAX_REFUSED_DOMAINS);
        assert_eq!(refusals.report()[0].domain, Domain(7));
    }
}
