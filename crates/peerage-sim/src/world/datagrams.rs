//! Datagrams between parties, and the attacker on the way.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_proto::{node, operator};

use super::{Bug, Due, MAX_OVERHEARD, World};
use crate::invariants::Fact;
use crate::network::{Multicast, PORT, Party, Place};
use crate::wide::WidePorts;

/// How long a datagram takes on a LAN.
const LAN_DELAY: std::time::Duration = std::time::Duration::from_micros(300);

/// The only interface of every computer.
const INTERFACE: u32 = 2;

/// Returns whether a datagram is a reply or a hint (Rule 3.1), at most one of which is sent for each datagram that arrives.
fn is_answer(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(0x09 | 0x0b))
}

impl World {
    /// Puts a datagram of a party on its way.
    pub(super) fn send(&mut self, from: Party, inner: SocketAddr, to: SocketAddr, mut payload: Bytes) {
        if self.setup.planted == Some(Bug::PadsReplies) && matches!(payload.first(), Some(9)) {
            payload = [&payload[..], &[0; 2_000]].concat().into();
        }
        self.observe(&Fact::Sent { from, payload: &payload });
        let site = match from {
            Party::Host(host) => {
                if let Some(counts) = self.counts.get_mut(host) {
                    counts.datagrams += 1;
                    counts.bytes += payload.len() as u64;
                    counts.answers += u64::from(is_answer(&payload));
                }
                self.hosts.get(host).map(|host| host.site)
            }
            Party::Operator(_) | Party::Stranger => None,
        };
        let now = self.now;
        let outer = match site {
            Some(site) => self.network.outbound(site, inner, to, now),
            None => Some(inner),
        };
        let lan = if outer.is_none() { site } else { None };
        let (party, from) = (from, outer.unwrap_or(inner));
        self.overhear(from, to, &payload);
        if self.is_counting && self.setup.is_told {
            let form = payload.first().copied().unwrap_or_default();
            self.tell(party, &format!("{} bytes of form {form:02x} to {to}", payload.len()));
        }
        self.carry(site, (from, to), lan, &payload);
    }

    fn carry(
        &mut self,
        site: Option<usize>,
        (from, to): (SocketAddr, SocketAddr),
        lan: Option<usize>,
        payload: &Bytes,
    ) {
        let goal = match lan {
            Some(site) => Some(site),
            None => match self.network.inbound((site, from), to, self.now) {
                Some(Place::Lan(goal, _)) => Some(goal),
                Some(Place::Operator(_)) | None => None,
            },
        };
        for delay in self.network.arrivals(site, goal) {
            let payload = payload.clone();
            self.schedule_in(delay, Due::Arrive { from_site: site, from, to, lan, payload });
        }
    }

    pub(super) fn arrive(
        &mut self,
        (from_site, from): (Option<usize>, SocketAddr),
        to: SocketAddr,
        lan: Option<usize>,
        payload: Bytes,
    ) {
        let place = match lan {
            Some(site) => Some(Place::Lan(site, to)),
            None => self.network.inbound((from_site, from), to, self.now),
        };
        let Some(place) = place else { return };
        let cut = match (from_site, place) {
            (Some(site), place) => !self.network.reaches(site, place),
            // From an operator or an attacker, who are where most are.
            (None, Place::Lan(site, _)) => !self.reaches_operator_at(site, from),
            (None, Place::Operator(_)) => false,
        };
        if cut {
            return;
        }
        match place {
            Place::Operator(index) => {
                self.trace.note(self.now, 3, index as u64, &payload);
                self.operator_input(index, operator::Input::Datagram { remote: from, payload });
            }
            Place::Lan(site, address) => {
                let host = self.host_at(site, address);
                if let Some(liar) =
                    host.filter(|host| self.hosts.get(*host).is_some_and(|h| h.liar.is_some()))
                {
                    return self.liar_hears(liar, from, &payload);
                }
                let Some(host) = host.filter(|host| self.hosts.get(*host).is_some_and(|h| h.is_awake()))
                else {
                    return;
                };
                if !self.takes_in(host) {
                    return;
                }
                self.trace.note(self.now, 4, host as u64, &payload);
                if let Some(host) = self.hosts.get_mut(host) {
                    host.wide_ports.heard(from, address);
                }
                self.host_input(host, node::Input::Datagram { remote: from, payload });
            }
        }
    }

    fn reaches_operator_at(&self, site: usize, from: SocketAddr) -> bool {
        let operator = self.operators.iter().position(|operator| operator.identity.address.ip() == from.ip());
        operator.is_none_or(|index| self.network.reaches(site, Place::Operator(index)))
    }

    /// Returns the computer with an address of a LAN.
    pub(super) fn host_at(&self, site: usize, address: SocketAddr) -> Option<usize> {
        let main = SocketAddr::new(address.ip(), PORT);
        let of_many = || self.places.get(&(site, main)).filter(|_| WidePorts::is_one(address.port()));
        self.places.get(&(site, address)).or_else(of_many).copied()
    }

    // ---- groups of LANs -----------------------------------------------------------------------

    /// A computer says something to the others on its LAN.
    pub(super) fn multicast(&mut self, index: usize, interface: u32, payload: Bytes) {
        let Some(host) = self.hosts.get(index) else { return };
        let (site, from) = (host.site, host.inner);
        if let Some(counts) = self.counts.get_mut(index) {
            counts.multicasts += 1;
        }
        self.observe(&Fact::Sent { from: Party::Host(index), payload: &payload });
        match self.network.sites.get(site).map(|site| site.lan.multicast) {
            Some(Multicast::Works) => {
                self.say_to_group(site, from, &payload);
                if self.overheard_groups.len() < MAX_OVERHEARD || self.attacker.happens(100) {
                    self.overheard_groups.truncate(MAX_OVERHEARD - 1);
                    self.overheard_groups.insert(0, (site, from, payload));
                }
            }
            Some(Multicast::Refused) => {
                self.later(index, LAN_DELAY, node::Input::MulticastFailed { interface });
            }
            Some(Multicast::Blocked) | None => {}
        }
    }

    fn say_to_group(&mut self, site: usize, from: SocketAddr, payload: &Bytes) {
        let first = SocketAddr::from(([0, 0, 0, 0], 0));
        let here = self.places.range((site, first)..(site.saturating_add(1), first));
        let others: Vec<_> =
            here.filter(|((_, address), _)| *address != from).map(|(_, host)| *host).collect();
        for host in others {
            if self.network.is_heard(site) {
                let payload = payload.clone();
                self.schedule_in(LAN_DELAY, Due::Group { host, site, from, payload });
            }
        }
    }

    pub(super) fn group_heard(&mut self, index: usize, site: usize, from: SocketAddr, payload: Bytes) {
        let is_here = self.hosts.get(index).is_some_and(|host| host.site == site && host.is_awake());
        if is_here {
            self.trace.note(self.now, 8, index as u64, &payload);
            self.host_input(index, node::Input::Multicast { interface: INTERFACE, from, payload });
        }
    }

    /// Somebody on a LAN says again what was said to a group, here or elsewhere, half of it altered.
    pub(super) fn replay_groups(&mut self, site: usize, count: usize) {
        for _ in 0..count {
            let Some((_, from, payload)) = self.attacker.pick(&self.overheard_groups).cloned() else {
                return;
            };
            let mut bytes = payload.to_vec();
            let (at, bit) = (self.attacker.index(bytes.len()), self.attacker.below(8));
            if let Some(byte) = bytes.get_mut(at).filter(|_| self.attacker.happens(500)) {
                *byte ^= 1 << bit;
            }
            self.say_to_group(site, from, &bytes.into());
        }
    }

    // ---- the attacker on the way --------------------------------------------------------------

    fn overhear(&mut self, from: SocketAddr, to: SocketAddr, payload: &Bytes) {
        let kept = (from, to, payload.clone());
        if self.overheard.len() < MAX_OVERHEARD {
            self.overheard.push(kept);
        } else if self.attacker.happens(50) {
            let at = self.attacker.index(MAX_OVERHEARD);
            if let Some(slot) = self.overheard.get_mut(at) {
                *slot = kept;
            }
        }
    }

    /// Sends overheard datagrams again, to whom they were for or to somebody else, with their sender's address.
    pub(super) fn replay(&mut self, count: usize) {
        for _ in 0..count {
            let Some((from, to, payload)) = self.attacker.pick(&self.overheard).cloned() else { return };
            let to = match self.attacker.pick(&self.overheard) {
                Some((_, other, _)) if self.attacker.happens(300) => *other,
                _ => to,
            };
            self.carry(None, (from, to), None, &payload);
        }
    }

    /// Sends overheard datagrams with a bit altered.
    pub(super) fn alter(&mut self, count: usize) {
        for _ in 0..count {
            let Some((from, to, payload)) = self.attacker.pick(&self.overheard).cloned() else { return };
            let mut altered = payload.to_vec();
            let (at, bit) = (self.attacker.index(altered.len()), self.attacker.below(8));
            if let Some(byte) = altered.get_mut(at) {
                *byte ^= 1 << bit;
            }
            self.carry(None, (from, to), None, &altered.into());
        }
    }

    /// Sends bytes that mean nothing, with first bytes that do.
    pub(super) fn flood(&mut self, to: SocketAddr, count: usize) {
        for _ in 0..count {
            let mut bytes = self.attacker.bytes::<1_200>().to_vec();
            bytes.truncate(self.attacker.index(1_201));
            let form = self.attacker.pick(&[4, 5, 6, 7, 9, 0x0b, 0xff]).copied();
            if let (Some(first), Some(form)) = (bytes.first_mut(), form) {
                *first = form;
            }
            let last = u8::try_from(self.attacker.below(250)).unwrap_or(1);
            let from = SocketAddr::from(([47, 0, 0, last], PORT));
            self.carry(None, (from, to), None, &bytes.into());
        }
    }
}
