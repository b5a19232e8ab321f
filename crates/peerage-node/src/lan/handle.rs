//! The handle, and the gateways' hardware addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use peerage_proto::dial::forbidden_mac;
use peerage_proto::lan::{Interface, InterfaceKind, Mac};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::codec::{Message, NeighbourState};
use super::facts;
use super::find::Search;
use super::netlink::{Event, NEIGHBOURS, Netlink};
use super::sweep::Budget;
use super::watch::LanChanges;
use super::{FindDevice, LanError, Presence, probe};

/// How long a gateway may take to tell its hardware address. The system asks at once and again each second; one that
/// does not answer the first time is busy or absent. Raised, a network without a router is found later; lowered, a
/// sleepy router is missed.
const GATEWAY_TIMEOUT: Duration = Duration::from_millis(1100);

/// The most searches at a time; others wait. Each holds some sockets and may hold a sweep.
const MAX_SEARCHES: usize = 16;

/// The most devices of which it is remembered that they answer probes; beyond, all are forgotten and learnt anew.
const MAX_ANSWERING: usize = 1024;

/// Reads this computer's networks and looks for devices on them.
///
/// Clones share the budget of sweeps; a process needs one. All calls need a tokio runtime with I/O and time.
#[derive(Clone, Debug)]
pub struct Lan {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    memory: Mutex<Memory>,
    searches: Semaphore,
}

/// What outlives a search.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) budget: Budget,
    /// Devices that have answered a probe: silence means more from them than from others.
    answering: BTreeSet<Mac>,
}

impl Memory {
    pub(super) fn answers(&self, mac: Mac) -> bool {
        self.answering.contains(&mac)
    }

    pub(super) fn note_answer(&mut self, mac: Mac) {
        if self.answering.len() >= MAX_ANSWERING {
            self.answering.clear();
        }
        self.answering.insert(mac);
    }
}

impl Shared {
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing that holds the lock can leave it half-changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Lan {
    /// Returns the handle; reads and sends nothing yet.
    pub fn new() -> Self {
        let memory = Mutex::new(Memory::default());
        Self { shared: Arc::new(Shared { memory, searches: Semaphore::new(MAX_SEARCHES) }) }
    }

    /// Returns all interfaces of this computer, by index.
    ///
    /// Where the hardware address of a location's gateway is not known, the gateway is sent one empty datagram, and
    /// has about a second to tell it; other gateways have it only if it is known.
    ///
    /// # Errors
    /// If the kernel's routing socket fails. A silent gateway is no error: it has no MAC.
    pub async fn snapshot(&self) -> Result<Vec<Interface>, LanError> {
        // Opened before the reading, so that no answer falls between the two.
        let mut events = Netlink::open(NEIGHBOURS)?;
        let mut requests = Netlink::open(0)?;
        let mut interfaces = facts::read(&mut requests).await?.interfaces;
        let mut waiting = provoke_gateways(&interfaces);
        let deadline = Instant::now() + GATEWAY_TIMEOUT;
        while !waiting.is_empty() {
            match timeout_at(deadline, events.event()).await {
                Err(_) => break,
                Ok(Ok(Event::Message(message))) => note_gateway(&message, &mut waiting, &mut interfaces),
                Ok(Ok(Event::Overrun)) => {
                    for neighbour in facts::neighbours(&mut requests).await? {
                        note_gateway(&Message::Neighbour(neighbour), &mut waiting, &mut interfaces);
                    }
                }
                Ok(Err(error)) => return Err(error.into()),
            }
        }
        Ok(interfaces)
    }

    /// Returns a source of changes to what [`Lan::snapshot`] returns.
    ///
    /// # Errors
    /// If the kernel's routing socket cannot be opened.
    pub fn watch(&self) -> Result<LanChanges, LanError> {
        LanChanges::open()
    }

    /// Looks for a device: in the neighbour table, at its last address, then by a sweep, as far as the request allows.
    ///
    /// Takes milliseconds for a device that is where it was and answers probes, up to some seconds for one that is
    /// silent, and never longer than [`super::MAX_FIND`] once it has begun; no more than 16 run at a time. If a dial
    /// to the returned address fails, call again with it as `suspect`: a device that went away within the last minute
    /// may still seem to be there.
    ///
    /// # Errors
    /// If the kernel's routing socket fails. An absent device is no error.
    pub async fn find(&self, request: &FindDevice) -> Result<Presence, LanError> {
        let _permit = self.shared.searches.acquire().await.map_err(io::Error::other)?;
        let events = Netlink::open(NEIGHBOURS)?;
        let mut requests = Netlink::open(0)?;
        let facts = facts::read(&mut requests).await?;
        if let Some(reason) = forbidden_mac(request.mac, &facts.interfaces) {
            return Ok(Presence::Refused(reason));
        }
        Search::new(&self.shared, request, &facts).run(events, requests).await
    }
}

/// Asks for the hardware addresses that locations lack, one of each interface (Rule 6.11), and returns whose.
fn provoke_gateways(interfaces: &[Interface]) -> BTreeSet<(u32, IpAddr)> {
    let mut waiting = BTreeSet::new();
    let links = interfaces.iter().filter(|i| i.up && i.mac.is_some() && i.kind != InterfaceKind::Loopback);
    for interface in links {
        let Some(gateway) = interface.location_gateway().filter(|gateway| gateway.mac.is_none()) else {
            continue;
        };
        let sent = probe::open(interface, gateway.address.is_ipv4())
            .and_then(|socket| probe::send(&socket, interface.index, gateway.address));
        match sent {
            Ok(()) => {
                waiting.insert((interface.index, gateway.address));
            }
            Err(error) => tracing::debug!(interface = interface.name, %error, "cannot ask for the gateway"),
        }
    }
    waiting
}

/// Enters a gateway's answer, or that there will be none.
fn note_gateway(message: &Message, waiting: &mut BTreeSet<(u32, IpAddr)>, interfaces: &mut [Interface]) {
    let Message::Neighbour(neighbour) = message else { return };
    if !waiting.contains(&(neighbour.interface, neighbour.address)) {
        return;
    }
    if neighbour.mac.is_some() || neighbour.state == NeighbourState::Failed {
        waiting.remove(&(neighbour.interface, neighbour.address));
    }
    let interface = interfaces.iter_mut().filter(|interface| interface.index == neighbour.interface);
    let gateways = interface.flat_map(|interface| &mut interface.gateways);
    for gateway in gateways.filter(|gateway| gateway.address == neighbour.address) {
        gateway.mac = gateway.mac.or(neighbour.mac);
    }
}
