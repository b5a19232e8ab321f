//! Super-nodes carry a network, and die: nobody notices for longer than a request takes, and nothing is forgotten.
//!
//! An operator is on the Internet; organisations have sites behind NAT, each with a device and with a computer that serves it and
//! uses those of the others; further organisations lend one computer each. These become super-nodes, so that each part of the table
//! has three holders and the operator steps back. Then all but one of the holders of each part are killed and started again
//! while the members look devices up, open tunnels to them, register new ones and move.
//!
//! Two smaller stories are those of Ynddal 2016, section 3.1: scenario B, two companies that share a server, and
//! scenario C, three companies with two servers, of which either may die.

mod cast;
mod companies;
mod costs;
mod work;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use cast::{Network, Plan, Segment, Stage, text, wait_for};
use costs::{Idling, Meter};
use work::Work;

/// How many holders each part of the table is to have.
const REPLICAS: usize = 3;

/// How often a member does something while super-nodes die. Leases of super-nodes run out after 30 s, so that with this all of
/// it takes long enough for the map to be mended.
const PACE: Duration = Duration::from_millis(500);

/// From when on it is told that an operation took long.
const SLOW: Duration = Duration::from_secs(1);

/// How long it takes until a network that was just formed is at rest: those who were asked lately keep their Heads fresh for
/// 90 s.
const SETTLE_TIME: Duration = Duration::from_secs(90);

/// How long idling is measured.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// How many look-ups, and how many announcements, are measured.
const MEASURED: [usize; 2] = [40, 6];

/// How long the measurement of an announcement takes: nodes pause 10 s after one.
const ANNOUNCEMENT_TIME: Duration = Duration::from_secs(12);

/// How much of the story is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Nine super-nodes and four sites, 200 operations, two holders of each part of the table killed, costs measured, and both
    /// smaller stories.
    Full,
    /// Three super-nodes and two sites, 20 operations, one super-node killed.
    Small,
}

impl Size {
    fn plan(self) -> Plan {
        match self {
            Self::Full => Plan {
                lenders: &["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "jay"],
                sites: &["acme", "acme", "globex", "globex"],
            },
            Self::Small => Plan { lenders: &["ant", "bee", "cat"], sites: &["acme", "acme"] },
        }
    }

    /// Returns how many are super-nodes at first, and then, and in how many parts they divide the table: six share all of it,
    /// since nobody's own super-node counts for him.
    fn steps(self) -> &'static [(usize, usize)] {
        match self {
            Self::Full => &[(2 * REPLICAS, 1), (3 * REPLICAS, 2)],
            Self::Small => &[(REPLICAS, 1)],
        }
    }

    /// Returns before which operations one more holder of each part of the table is killed.
    fn kills(self) -> &'static [usize] {
        match self {
            Self::Full => &[20, 60],
            Self::Small => &[4],
        }
    }

    /// Returns before which operations those killed at one time are started again.
    fn returns(self) -> &'static [usize] {
        match self {
            Self::Full => &[140, 170],
            Self::Small => &[16],
        }
    }

    fn operations(self) -> usize {
        match self {
            Self::Full => 200,
            Self::Small => 20,
        }
    }
}

/// Plays the story with these programs and tells `progress` about each step.
pub fn super_nodes(programs: &Programs, size: Size, progress: &mut dyn FnMut(&str)) -> Report {
    Story::tell(programs, size, progress, |story| story.play_all())
}

/// Plays the two smaller stories alone.
pub fn companies(programs: &Programs, progress: &mut dyn FnMut(&str)) -> Report {
    Story::tell(programs, Size::Full, progress, |story| story.companies())
}

struct Story<'a> {
    began_at: Instant,
    size: Size,
    programs: &'a Programs,
    progress: &'a mut dyn FnMut(&str),
    report: &'a mut Report,
}

impl Story<'_> {
    fn say(&mut self, text: &str) {
        (self.progress)(&format!("{:7.2} s  {text}", self.began_at.elapsed().as_secs_f64()));
    }

    /// Has a network end in order if `result` says that all went well, else shows what everybody wrote.
    fn end(&mut self, mut network: Network<'_>, result: Result<()>) -> Result<()> {
        let result = result.and_then(|()| {
            self.say("ending all programs in order");
            network.stop()
        });
        if result.is_err() {
            for log in network.logs() {
                (self.progress)(&log);
            }
        }
        result
    }

    fn tell(
        programs: &Programs,
        size: Size,
        progress: &mut dyn FnMut(&str),
        play: fn(&mut Story<'_>) -> Result<()>,
    ) -> Report {
        let mut report = Report::default();
        for fact in ["lookups", "failed", "records_lost"] {
            report.note(fact, 0);
        }
        let began_at = Instant::now();
        let result = play(&mut Story { began_at, size, programs, progress, report: &mut report });
        report.note("total_ms", milliseconds(began_at.elapsed()));
        report.error = result.err();
        report
    }

    fn play_all(&mut self) -> Result<()> {
        self.play()?;
        if self.size == Size::Full {
            self.companies()?;
        }
        Ok(())
    }

    fn play(&mut self) -> Result<()> {
        let plan = self.size.plan();
        self.say(&format!(
            "building {} sites behind NAT and {} public hosts",
            plan.sites.len(),
            plan.lenders.len() + 1
        ));
        let stage = Stage::build(&plan)?;
        let meter = Meter::install(&stage)?;
        self.say("everybody joins");
        let mut network = Network::start(&stage, self.programs, &plan)?;
        let result = self.play_on(&stage, &meter, &mut network);
        self.end(network, result)
    }

    fn play_on(&mut self, stage: &Stage, meter: &Meter<'_>, network: &mut Network<'_>) -> Result<()> {
        self.wait_until_found(network)?;
        let mut work = Work::new(network);
        let mut segments = Vec::new();
        for step in self.size.steps() {
            segments = self.form(network, *step, &mut work)?;
        }
        self.report.note("segments", segments.len());
        let holders: Vec<usize> = segments.iter().map(|segment| segment.holders.len()).collect();
        self.report.note("holders", holders);
        if self.size == Size::Full {
            self.measure(stage, meter, network)?;
        }
        let result = self.work_while_holders_die(stage, network, &segments, &mut work);
        work.note(self.report);
        result?;
        self.converge(network, &work)?;
        work.check()
    }

    /// Has so many computers be super-nodes, and waits until they carry the table alone; meanwhile all is found as before.
    fn form(
        &mut self,
        network: &mut Network<'_>,
        (count, parts): (usize, usize),
        work: &mut Work,
    ) -> Result<Vec<Segment>> {
        self.say(&format!("{count} computers are lent"));
        let began_at = Instant::now();
        for lender in network.lenders.iter_mut().take(count).filter(|lender| !lender.is_lent) {
            lender.peerage.call(&["super", "on"])?;
            lender.is_lent = true;
        }
        let mut sites = (0..network.sites.len()).cycle();
        let segments =
            wait_for("each part of the table has three holders and the operator steps back", || {
                let site = sites.next().context("there are no sites")?;
                work.look_up(network, site)?;
                Ok(carried(network)?.and_then(|segments| {
                    if segments.len() >= parts { Ok(segments) } else { Err(format!("{segments:?}")) }
                }))
            })?;
        self.report.note(&format!("formed_{count}_ms"), milliseconds(began_at.elapsed()));
        work.note(self.report);
        work.check()?;
        Ok(segments)
    }

    /// Waits until every site finds the devices of its organisation, for the first time.
    fn wait_until_found(&mut self, network: &Network<'_>) -> Result<()> {
        self.say("waiting until every device is found from every site");
        for site in 0..network.sites.len() {
            wait_for("all devices are found", || {
                let mut attempt = Work::new(network);
                attempt.look_up(network, site)?;
                Ok(attempt.check().map_err(|error| error.to_string()))
            })?;
        }
        Ok(())
    }

    /// Measures what idling, a look-up and an announcement cost each role.
    fn measure(&mut self, stage: &Stage, meter: &Meter<'_>, network: &Network<'_>) -> Result<()> {
        thread::sleep(SETTLE_TIME);
        self.say(&format!("counting for {} s what goes on when nobody asks", IDLE_TIME.as_secs()));
        let (before, began_at) = (meter.read()?, Instant::now());
        thread::sleep(IDLE_TIME);
        let after = meter.read()?;
        let idling = Idling::between(&before, &after, began_at.elapsed());
        let [lookups, announcements] = MEASURED;

        self.say("counting what look-ups cost");
        let (before, began_at) = (meter.read()?, Instant::now());
        let mut work = Work::new(network);
        for number in 0..lookups {
            work.look_up(network, number % network.sites.len())?;
        }
        work.check()?;
        let lookup = idling.beyond(&before, &meter.read()?, began_at.elapsed(), lookups);

        self.say("counting what announcements cost");
        let (before, began_at) = (meter.read()?, Instant::now());
        for _ in 0..announcements {
            work.move_node(stage, 0)?;
            thread::sleep(ANNOUNCEMENT_TIME);
        }
        let announcement = idling.beyond(&before, &meter.read()?, began_at.elapsed(), announcements);
        let costs =
            json!({ "idle_hour": idling.per_hour(meter), "lookup": lookup, "announcement": announcement });
        self.say(&format!("costs: {costs}"));
        self.report.note("costs", costs);
        Ok(())
    }

    fn work_while_holders_die(
        &mut self,
        stage: &Stage,
        network: &mut Network<'_>,
        segments: &[Segment],
        work: &mut Work,
    ) -> Result<()> {
        self.say("the members work, and super-nodes die");
        let began_at = Instant::now();
        let mut killed: Vec<Vec<usize>> = Vec::new();
        for operation in 0..self.size.operations() {
            if self.size.kills().contains(&operation) {
                killed.push(self.kill_one_of_each(network, segments, &killed.concat())?);
            }
            if let Some(round) = self.size.returns().iter().position(|at| *at == operation) {
                for victim in killed.get(round).context("nobody was killed")? {
                    let lender = network.lenders.get_mut(*victim).context("no such super-node")?;
                    self.say(&format!("{} is started again", lender.name));
                    lender.start()?;
                }
            }
            let (site, asked_at) = (operation % network.sites.len(), Instant::now());
            match operation % 20 {
                9 | 19 => work.fetch(network, self.programs, site)?,
                7 => work.move_node(stage, site)?,
                14 => work.register(network, site)?,
                _ => work.look_up(network, site)?,
            }
            if asked_at.elapsed() > SLOW {
                self.say(&format!(
                    "operation {operation} took {} ms at site {}",
                    asked_at.elapsed().as_millis(),
                    site + 1
                ));
            }
            let due = PACE * u32::try_from(operation + 1).unwrap_or(u32::MAX);
            thread::sleep(due.saturating_sub(began_at.elapsed()));
        }
        self.report.note("killed", killed.concat().len());
        Ok(())
    }

    /// Kills one more holder of each segment, and returns who that was.
    fn kill_one_of_each(
        &mut self,
        network: &mut Network<'_>,
        segments: &[Segment],
        dead: &[usize],
    ) -> Result<Vec<usize>> {
        let mut killed = Vec::new();
        for segment in segments {
            let is_holder = |number: &usize| {
                network.lenders.get(*number).is_some_and(|lender| segment.holders.contains(&lender.id))
            };
            if dead.iter().chain(&killed).filter(|number| is_holder(number)).count() >= REPLICAS - 1 {
                continue;
            }
            let victim =
                (0..network.lenders.len()).find(|n| is_holder(n) && !dead.contains(n) && !killed.contains(n));
            let victim = victim.context("nobody is left to be killed")?;
            let lender = network.lenders.get_mut(victim).context("no such super-node")?;
            self.say(&format!("{} is killed", lender.name));
            lender.kill()?;
            killed.push(victim);
        }
        Ok(killed)
    }

    /// Waits until all holders are back, agree, and everybody knows all that the operator has confirmed.
    fn converge(&mut self, network: &Network<'_>, work: &Work) -> Result<()> {
        self.say("waiting until everything has settled");
        let began_at = Instant::now();
        let lost = wait_for("everybody knows every device", || {
            let lost = work.lost(network)?;
            Ok(if lost.is_empty() { Ok(0) } else { Err(lost.join(", ")) })
        });
        self.report.note(
            "records_lost",
            match &lost {
                Ok(none) => *none,
                Err(_) => work.lost(network)?.len(),
            },
        );
        lost?;
        wait_for("each part of the table has three holders again", || carried(network))?;
        wait_for("the holders of each part hold the same", || in_step(network))?;
        self.wait_until_found(network)?;
        self.report.note("converged_ms", milliseconds(began_at.elapsed()));
        Ok(())
    }
}

/// Returns the segments if super-nodes carry all of them alone, all sides agreeing on who holds what; else what is so instead.
fn carried(network: &Network<'_>) -> Result<Result<Vec<Segment>, String>> {
    let segments = network.segments()?;
    if segments.iter().any(|segment| segment.stands_in || segment.holders.len() < REPLICAS) {
        return Ok(Err(format!("{segments:?}")));
    }
    let listed = network.super_list()?;
    for lender in network.lenders.iter().filter(|lender| lender.is_lent && lender.is_up()) {
        let Some(entry) = listed.iter().find(|entry| text(entry, "id").ok() == Some(&lender.id)) else {
            return Ok(Err(format!("the list does not name {}", lender.name)));
        };
        let status = lender.peerage.call(&["status"])?;
        let role =
            status.get("super_node").with_context(|| format!("nothing about super-nodes in {status}"))?;
        let segment = segments.iter().find(|segment| segment.holders.contains(&lender.id));
        let range = |value: &Value| {
            let range = value.get("range")?;
            Some((text(range, "from").ok()?.to_owned(), text(range, "to").ok()?.to_owned()))
        };
        let expected = segment.map(|segment| (segment.from.clone(), segment.to.clone()));
        let serves = [entry, role].iter().all(|value| text(value, "state").ok() == Some("serving"));
        if expected.is_none() || range(entry) != expected || range(role) != expected || !serves {
            return Ok(Err(format!("{entry} at the operator and {role} at {}", lender.name)));
        }
    }
    Ok(Ok(segments))
}

/// Returns whether those who hold the same part of the table hold the same number of records; else how many each holds.
fn in_step(network: &Network<'_>) -> Result<Result<(), String>> {
    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for lender in &network.lenders {
        let status = lender.peerage.call(&["status"])?;
        let role = status.get("super_node").context("nothing about super-nodes")?;
        let records = role.get("records").and_then(Value::as_u64).context("no number of records")?;
        let range = role.get("range").map(ToString::to_string).unwrap_or_default();
        counts.entry(range).or_default().push(records);
    }
    let agree =
        counts.values().all(|counts| counts.iter().all(|count| Some(count) == counts.first() && *count > 0));
    Ok(if agree { Ok(()) } else { Err(format!("{counts:?}")) })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
