//! Says when the facts have changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use peerage_proto::lan::{Interface, Mac};
use tokio::time::{Instant, sleep_until};

use super::codec::{Link, Message};
use super::facts;
use super::netlink::{Event, NEIGHBOURS, Netlink, TOPOLOGY};
use super::{CHANGE_DELAY, LanError};

/// The most events that one reading answers, some times what the socket's buffer holds; beyond, all counts as new.
/// Without a limit a flood of events would keep the reading from ever being made.
const MAX_DRAINED: u32 = 65_536;

/// A source of changes to interfaces, addresses, default gateways and their hardware addresses.
///
/// Holds a socket and no task: changes while nobody waits are noticed by the next call.
#[derive(Debug)]
pub struct LanChanges {
    events: Netlink,
    /// What the caller knows of; none before the first reading.
    known: Option<Vec<Interface>>,
    /// When to read again, after an event that may matter.
    due: Option<Instant>,
}

impl LanChanges {
    pub(super) fn open() -> Result<Self, LanError> {
        Ok(Self { events: Netlink::open(TOPOLOGY | NEIGHBOURS)?, known: None, due: Some(Instant::now()) })
    }

    /// Waits until something has changed, which it tells no sooner than [`CHANGE_DELAY`] after it happened.
    ///
    /// The first call returns at once: everything is new to the caller. A gateway's hardware address that gets lost is
    /// no change, since asking for it again is what would make it reappear. May be cancelled and called again.
    ///
    /// # Errors
    /// If the kernel's routing socket fails.
    pub async fn changed(&mut self) -> Result<(), LanError> {
        loop {
            let due = match self.due {
                Some(due) => due,
                None => {
                    self.next_relevant().await?;
                    *self.due.insert(Instant::now() + CHANGE_DELAY)
                }
            };
            sleep_until(due).await;
            // What happens after this is either in the reading or another event.
            self.drain()?;
            // A socket for each reading: one whose reading was cancelled half-way refuses the next one as busy.
            let mut now = facts::read(&mut Netlink::open(0)?).await?.interfaces;
            self.due = None;
            if let Some(known) = &self.known {
                inherit_gateway_macs(known, &mut now);
            }
            if self.known.as_ref() != Some(&now) {
                self.known = Some(now);
                return Ok(());
            }
        }
    }

    async fn next_relevant(&mut self) -> Result<(), LanError> {
        loop {
            match self.events.event().await? {
                Event::Overrun => {
                    self.known = None;
                    return Ok(());
                }
                Event::Message(message) => {
                    self.note(&message);
                    if is_relevant(&message, self.known.as_deref().unwrap_or(&[])) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes the events that have arrived, for which one reading is enough.
    fn drain(&mut self) -> Result<(), LanError> {
        for _ in 0..MAX_DRAINED {
            match self.events.try_event()? {
                None => return Ok(()),
                Some(Event::Message(message)) => self.note(&message),
                Some(Event::Overrun) => self.known = None,
            }
        }
        self.known = None;
        Ok(())
    }

    /// Remembers that a link was lost, though it may be back before the next reading: it can now lead to
    /// another network with the same addresses, so that all is new.
    fn note(&mut self, message: &Message) {
        let Message::Link(link) = message else { return };
        let known = self.known.iter().flatten().find(|interface| interface.index == link.index);
        if link.flags & Link::LOWER_UP == 0 && known.is_some_and(|interface| interface.up) {
            self.known = None;
        }
    }
}

/// Returns whether a message can mean that the facts differ from the known ones.
fn is_relevant(message: &Message, known: &[Interface]) -> bool {
    match message {
        Message::Link(_) | Message::Address(_) | Message::DefaultRoute(_) | Message::Removed => true,
        // Neighbours change state all the time: only another router behind a gateway's address counts.
        Message::Neighbour(neighbour) => known.iter().any(|interface| {
            let mut gateways = interface.gateways.iter();
            interface.index == neighbour.interface
                && neighbour.mac.is_some()
                && gateways
                    .any(|gateway| gateway.address == neighbour.address && gateway.mac != neighbour.mac)
        }),
        Message::Done | Message::Error(_) | Message::Other => false,
    }
}

/// Keeps the hardware addresses of gateways that have none for the moment and stand where they stood.
fn inherit_gateway_macs(before: &[Interface], now: &mut [Interface]) {
    let macs: BTreeMap<(u32, IpAddr), Mac> = before
        .iter()
        .filter(|interface| interface.up)
        .flat_map(|interface| interface.gateways.iter().map(move |gateway| (interface.index, gateway)))
        .filter_map(|(index, gateway)| Some(((index, gateway.address), gateway.mac?)))
        .collect();
    for interface in now.iter_mut().filter(|interface| interface.up) {
        for gateway in &mut interface.gateways {
            gateway.mac = gateway.mac.or_else(|| macs.get(&(interface.index, gateway.address)).copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use peerage_proto::lan::{Gateway, InterfaceKind};
    use tokio::task::{coop::consume_budget, yield_now};

    use super::super::codec::{Neighbour, NeighbourState};
    use super::*;

    #[test]
    fn among_neighbours_only_a_gateway_with_another_mac_counts() {
        let known = [interface(Some(1))];
        assert!(!is_relevant(&neighbour("192.168.1.1", Some(1)), &known));
        assert!(!is_relevant(&neighbour("192.168.1.1", None), &known));
        assert!(!is_relevant(&neighbour("192.168.1.2", Some(2)), &known));
        assert!(is_relevant(&neighbour("192.168.1.1", Some(2)), &known));
        assert!(is_relevant(&neighbour("192.168.1.1", Some(2)), &[interface(None)]));
        let mut elsewhere = interface(Some(1));
        elsewhere.index = 3;
        assert!(!is_relevant(&neighbour("192.168.1.1", Some(2)), &[elsewhere]));
    }

    #[test]
    fn a_gateway_that_falls_silent_keeps_its_mac_unless_the_link_was_down() {
        let mut now = [interface(None)];
        inherit_gateway_macs(&[interface(Some(1))], &mut now);
        assert_eq!(now, [interface(Some(1))]);

        let mut replaced = [interface(Some(2))];
        inherit_gateway_macs(&[interface(Some(1))], &mut replaced);
        assert_eq!(replaced, [interface(Some(2))]);

        let mut down = interface(Some(1));
        down.up = false;
        let mut up_again = [interface(None)];
        inherit_gateway_macs(&[down], &mut up_again);
        assert_eq!(up_again, [interface(None)]);
    }

    #[tokio::test]
    async fn a_reading_that_is_cancelled_anywhere_does_not_spoil_the_next() {
        let mut changes = LanChanges::open().unwrap();
        // Past, so that the first poll already asks the kernel.
        let due = Instant::now() - CHANGE_DELAY;
        for spent in 0..128 {
            (changes.known, changes.due) = (None, Some(due));
            // The less of its budget a task has left, the sooner the runtime makes it wait.
            yield_now().await;
            for _ in 0..spent {
                consume_budget().await;
            }
            let mut cancelled = Box::pin(changes.changed());
            poll_fn(|cx| Poll::Ready(cancelled.as_mut().poll(cx).is_ready())).await;
            drop(cancelled);
            (changes.known, changes.due) = (None, Some(due));
            changes.changed().await.unwrap();
        }
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn neighbour(address: &str, last: Option<u8>) -> Message {
        let address = address.parse().unwrap();
        let state = NeighbourState::Unproven;
        Message::Neighbour(Neighbour { interface: 2, address, mac: last.map(mac), state, confirmed_ms: None })
    }

    fn interface(gateway: Option<u8>) -> Interface {
        Interface {
            index: 2,
            name: "eth0".into(),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: vec![],
            gateways: vec![Gateway {
                metric: 0,
                address: "192.168.1.1".parse().unwrap(),
                mac: gateway.map(mac),
            }],
        }
    }
}
