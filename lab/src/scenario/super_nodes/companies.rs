//! The smaller stories: companies that share one server or two.

use anyhow::{Context, Result, ensure};

use super::Story;
use super::cast::{Member, Network, Plan, Stage, device, list, text, wait_for};
use super::work::Work;

/// Scenario B of Ynddal 2016, section 3.1.2: two companies, of which one has a server.
const TWO_COMPANIES: Plan = Plan { lenders: &["acme"], sites: &["acme", "acme", "globex", "globex"] };

/// Scenario C of Ynddal 2016, section 3.1.3: three companies, of which two have servers.
const THREE_COMPANIES: Plan =
    Plan { lenders: &["acme", "globex"], sites: &["acme", "acme", "globex", "globex", "initech", "initech"] };

/// How often every site looks its company's devices up in each situation.
const ROUNDS: usize = 3;

impl Story<'_> {
    /// Plays both.
    pub(super) fn companies(&mut self) -> Result<()> {
        self.say("two companies and a server");
        self.play_companies(&TWO_COMPANIES, "scenario_b")?;
        self.say("three companies and two servers, either of which dies");
        self.play_companies(&THREE_COMPANIES, "scenario_c")
    }

    fn play_companies(&mut self, plan: &Plan, fact: &str) -> Result<()> {
        let stage = Stage::build(plan)?;
        let mut network = Network::start(&stage, self.programs, plan)?;
        let result = self.share_servers(&mut network);
        if let Ok(lookups) = &result {
            self.report.note(fact, *lookups);
        }
        self.end(network, result.map(|_| ()))
    }

    /// Has the servers become super-nodes, and each die once, if there are several; and returns how many look-ups all made.
    fn share_servers(&mut self, network: &mut Network<'_>) -> Result<usize> {
        for server in &network.lenders {
            server.peerage.call(&["super", "on"])?;
        }
        wait_until_shared(network)?;
        self.wait_until_found(network)?;
        let mut lookups = look_up_everywhere(network)?;
        if network.lenders.len() < 2 {
            return Ok(lookups);
        }
        for number in 0..network.lenders.len() {
            let server = network.lenders.get_mut(number).context("no such server")?;
            server.kill()?;
            self.say("a server is killed");
            lookups += look_up_everywhere(network)?;
            network.lenders.get_mut(number).context("no such server")?.start()?;
            wait_until_shared(network)?;
        }
        self.say("the operator is killed");
        network.operator.kill()?;
        lookups += look_up_everywhere(network)?;
        network.operator.start()?;
        wait_until_shared(network)?;
        Ok(lookups)
    }
}

/// Waits until all servers hold the whole table; since they are fewer than three, the operator stands in beside them.
fn wait_until_shared(network: &Network<'_>) -> Result<()> {
    wait_for("all servers share the table", || {
        let segments = network.segments()?;
        let serves = |server: &Member<'_>| -> Result<bool> {
            let status = server.peerage.call(&["status"])?;
            Ok(status.get("super_node").and_then(|role| text(role, "state").ok()) == Some("serving"))
        };
        let serve = network.lenders.iter().map(serves).collect::<Result<Vec<_>>>()?;
        let all =
            |segment: &super::Segment| segment.holders.len() == network.lenders.len() && segment.stands_in;
        let is_shared =
            !segments.is_empty() && segments.iter().all(all) && serve.iter().all(|serves| *serves);
        Ok(if is_shared { Ok(()) } else { Err(format!("{segments:?}, serving: {serve:?}")) })
    })
}

/// Has every site look its company's devices up, and makes sure that it finds these and no other company's.
fn look_up_everywhere(network: &Network<'_>) -> Result<usize> {
    let mut work = Work::new(network);
    for number in 0..ROUNDS * network.sites.len() {
        let from = number % network.sites.len();
        work.look_up(network, from)?;
        let site = network.sites.get(from).context("no such site")?;
        let devices = list(&site.peerage.call(&["devices"])?)?;
        let known: Vec<&str> = devices.iter().map(|device| text(device, "name")).collect::<Result<_>>()?;
        let own = |name: &&str| {
            network.sites.iter().zip(1..).any(|(other, n)| other.domain == site.domain && device(n) == **name)
        };
        ensure!(known.iter().all(own), "{} knows a device of another company: {known:?}", site.name);
    }
    work.check()?;
    Ok(ROUNDS * network.sites.len())
}
