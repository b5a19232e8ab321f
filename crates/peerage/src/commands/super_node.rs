//! Lending this computer to the network: `super on`, `super off`, `super status`.

use crate::{
    Context,
    args::{SuperCommand, SuperOn},
    failure::Result,
    output::{bytes, pairs},
};
use peerage_client::{
    Client,
    local::{self, SuperNode, SuperOff, SuperRange, SuperState},
};

pub(crate) async fn run(command: SuperCommand, context: Context) -> Result {
    let client = Client::new(&context.data);
    match command {
        SuperCommand::Admin(command) => super::admin::super_node(command, &context).await,
        SuperCommand::On(limits) => {
            let lent = client.super_on(&request(&limits)).await?;
            context.output.result(&lent, show)
        }
        SuperCommand::Off => {
            let ended = client.super_off().await?;
            context.output.result(&ended, |ended| farewell(ended).to_owned())
        }
        SuperCommand::Status => {
            let lent = client.super_node().await?;
            context.output.result(&lent, show)
        }
    }
}

fn request(limits: &SuperOn) -> local::SuperOn {
    local::SuperOn {
        max_memory_bytes: limits.max_memory,
        max_tunnels: limits.max_tunnels,
        max_bytes_per_second: limits.max_rate,
        max_bytes_per_day: limits.max_daily,
    }
}

fn farewell(ended: &SuperOff) -> &'static str {
    let is_kept = ended.super_node.state != SuperState::Off;
    match ended.handed_over {
        Some(false) if is_kept => {
            "This computer goes on lending: somebody has said so (`peerage super on`) before it had handed over."
        }
        None => "This computer lends nothing to the network; it held nothing for others.",
        Some(true) => "This computer lends nothing to the network any more; others hold what it held.",
        Some(false) => {
            "This computer lends nothing to the network any more. No operator has confirmed that others hold what it held; \
             they will fetch it from each other."
        }
    }
}

/// Writes all of it, for people.
fn show(node: &SuperNode) -> String {
    let limits = &node.limits;
    let most = format!(
        "{} of memory, {} relayed tunnels, {}/s, {} a day",
        exact(limits.max_memory_bytes),
        limits.max_tunnels,
        exact(limits.max_bytes_per_second),
        exact(limits.max_bytes_per_day),
    );
    let is_off = node.state == SuperState::Off;
    pairs(&[
        ("super-node", state(node)),
        ("range", node.range.as_ref().map_or_else(String::new, range)),
        ("lends", if is_off { String::new() } else { format!("at most {most}") }),
        ("holds", if node.range.is_some() { holds(node) } else { String::new() }),
        ("has given", given(node).unwrap_or_default()),
    ])
}

/// Writes a number of bytes as its owner gave it: in the largest unit of 1000 or 1024 that loses nothing.
fn exact(bytes: u64) -> String {
    const UNITS: [(&str, u64); 8] = [
        ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("kB", 1_000),
        ("KiB", 1 << 10),
    ];
    let unit = UNITS.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or_else(|| format!("{bytes} B"), |(name, size)| format!("{} {name}", bytes / size))
}

/// Writes the lines about it that stand among others about the node.
pub(super) fn describe(node: &SuperNode) -> String {
    let range = node.range.as_ref().map(|held| format!("{}, {}", range(held), holds(node)));
    [Some(state(node)), range, given(node)].into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn state(node: &SuperNode) -> String {
    match &node.paused_because {
        Some(why) => format!("{}: {why}", node.state),
        None => node.state.to_string(),
    }
}

fn range(range: &SuperRange) -> String {
    let is_whole =
        range.from.bytes().all(|digit| digit == b'0') && range.to.bytes().all(|digit| digit == b'f');
    if is_whole { "the whole table".to_owned() } else { format!("{} to {}", range.from, range.to) }
}

fn holds(node: &SuperNode) -> String {
    let lacking = match node.lacking {
        0 => String::new(),
        1 => ", no room for one domain (lend more with --max-memory)".to_owned(),
        count => format!(", no room for {count} domains (lend more with --max-memory)"),
    };
    format!(
        "{} records in {}, {} nodes attached{lacking}",
        node.records,
        bytes(node.bytes_held),
        node.attached
    )
}

/// Writes what it has given, if it was ever asked for anything.
fn given(node: &SuperNode) -> Option<String> {
    let SuperNode { served_requests, relayed_bytes, relayed_tunnels, refusals, .. } = *node;
    let is_fresh = served_requests == 0 && relayed_bytes == 0 && refusals == 0 && node.range.is_none();
    (!is_fresh).then(|| {
        format!(
            "{served_requests} requests answered, {} relayed, {relayed_tunnels} tunnels relayed now, {refusals} refused",
            bytes(relayed_bytes)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving() -> SuperNode {
        SuperNode {
            state: SuperState::Serving,
            range: Some(SuperRange { from: "0".repeat(16), to: "f".repeat(16) }),
            records: 12,
            bytes_held: 4_096,
            attached: 3,
            served_requests: 70,
            relayed_bytes: 2_000_000,
            relayed_tunnels: 2,
            refusals: 1,
            ..SuperNode::default()
        }
    }

    #[test]
    fn what_a_super_node_is_and_gives_is_said_in_words() {
        let text = describe(&serving());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "serving");
        assert!(lines[1].starts_with("the whole table, 12 records in "), "{text}");
        assert!(lines[2].starts_with("70 requests answered, ") && lines[2].ends_with("1 refused"), "{text}");
        assert!(show(&serving()).contains("at most"));
    }

    #[test]
    fn domains_for_which_there_is_no_room_are_counted() {
        assert!(!describe(&serving()).contains("no room"));
        let full = SuperNode { lacking: 3, ..serving() };
        assert!(describe(&full).contains("no room for 3 domains"), "{}", describe(&full));
    }

    #[test]
    fn an_owner_who_lends_again_reads_that_it_goes_on() {
        let kept = SuperOff { handed_over: Some(false), super_node: serving() };
        assert!(farewell(&kept).contains("goes on lending"));
        let ended = SuperOff { handed_over: Some(false), super_node: SuperNode::default() };
        assert!(farewell(&ended).contains("No operator has confirmed"));
    }

    #[test]
    fn whoever_lends_nothing_and_gave_nothing_reads_one_word() {
        assert_eq!(describe(&SuperNode::default()), "off");
    }

    #[test]
    fn limits_are_shown_as_they_were_given() {
        for (bytes, text) in [
            (64 << 20, "64 MiB"),
            (10_000_000, "10 MB"),
            (20_000_000_000, "20 GB"),
            (500_000, "500 kB"),
            (0, "0 B"),
        ] {
            assert_eq!(exact(bytes), text);
        }
    }

    #[test]
    fn a_pause_says_why() {
        let why = Some("it runs on battery (BAT0)".to_owned());
        let paused = SuperNode { state: SuperState::Paused, paused_because: why, ..SuperNode::default() };
        assert_eq!(describe(&paused), "paused: it runs on battery (BAT0)");
    }

    #[test]
    fn a_part_of_the_table_is_named_by_its_ends() {
        let part = SuperRange { from: format!("{:016x}", 7), to: "f".repeat(16) };
        assert_eq!(range(&part), "0000000000000007 to ffffffffffffffff");
    }
}
