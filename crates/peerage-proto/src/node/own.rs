//! What this node keeps as a member of its domain: records of the own store, its own membership, the domain's devices.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::record::{DomainKeyBody, EndDevice, Header, Record, Table};
use peerage_wire::time::{Now, UnixTime};

use super::{
    Change, Discard, EXPIRED_RENEWAL_RETRY, EXPIRY_WARNING, Event, Node, RENEWAL_RETRY, SWEEP_INTERVAL,
};
use crate::table::Inserted;
use crate::trust::Trust;

impl Node {
    /// Keeps a verified record, in memory and on disk.
    pub(super) fn keep(&mut self, record: Record) -> Inserted {
        if record.header().table == Table::SuperNode {
            return self.keep_super_node(record);
        }
        let inserted = self.records.insert(record.clone());
        if inserted == Inserted::New {
            self.trust.learn(&record);
            self.write(vec![Change::Put(record)]);
        }
        inserted
    }

    pub(super) fn sweep(&mut self, now: Now) {
        self.sweep_at = now.mono.after(SWEEP_INTERVAL);
        let Some(time) = self.endpoint.judging_time(now) else { return };
        self.expire_super_nodes(time);
        let gone = self.records.expire(time);
        // Memberships end also while nobody can be asked for a Head.
        self.review_watched(now);
        if gone.is_empty() {
            return;
        }
        self.note_differences(now);
        let changes = gone.iter().map(|record| {
            let (table, domain, key) = record.header().id();
            Change::Delete { table, domain, key }
        });
        let changes = changes.collect();
        self.write(changes);
        if gone.iter().any(|record| record.header().table == Table::EndDevice) {
            self.devices_changed(now);
        }
    }

    /// Reads the own Node and DomainKey records, and plans the renewal at half of the life, jittered.
    pub(super) fn read_own_records(&mut self, now: Now) {
        let (domain, key) = (self.me.id.domain, self.me.id.record_key());
        if let Some(record) = self.records.get(Table::Node, domain, key).cloned()
            && let Some(member) = Trust::member(&record)
        {
            self.me = member;
            self.endpoint.set_record(record.bytes().clone());
            self.plan_renewal(record.header(), now);
        }
        if let Some(record) = self.records.get(Table::DomainKey, domain, key)
            && let Ok(body) = DomainKeyBody::read(record)
            && let Ok(keys) = body.open(self.trust.network(), self.me.id, &self.receiving)
            && keys.epoch >= self.keys.epoch
        {
            self.keys = keys;
            self.epoch_began = record.header().made_at();
        }
    }

    /// Plans the renewal of the own Node record, once for each version of it: a new domain key does not make it due again
    /// that has just been tried in vain.
    fn plan_renewal(&mut self, header: &Header, now: Now) {
        if self.renewal_of.replace(header.version) == Some(header.version) {
            return;
        }
        let half = self.jittered(header.expires.since(header.made_at()) / 2);
        let due = header.made_at().after(half);
        self.renew_at = Some(now.mono.after(due.since(self.endpoint.time(now))));
    }

    /// Draws after what time the renewal is asked for again: soon after the membership has ended, and no later after its end if that
    /// comes first.
    pub(super) fn renewal_pause(&mut self, now: Now) -> Duration {
        let to_the_end = self.endpoint.judging_time(now).map(|time| self.me.expires.since(time));
        let pause = self.jittered(RENEWAL_RETRY);
        let at_the_end = self.jittered(EXPIRED_RENEWAL_RETRY);
        to_the_end.map_or(pause, |rest| pause.min(rest.saturating_add(at_the_end)))
    }

    pub(super) fn renewed(&mut self, records: &[Bytes], time: Option<UnixTime>, now: Now) {
        // First, because it decides whether the records are from the future.
        if let Some(time) = time {
            self.endpoint.hear_renewal(time, now);
        }
        let time = self.endpoint.judging_time(now);
        for bytes in records {
            match self.trust.verify(bytes, time, self.endpoint.crypto()) {
                Ok(record) => {
                    self.keep(record);
                }
                Err(_) => self.endpoint.discard(Discard::BadRecord),
            }
        }
        self.own_records_changed(now);
        self.note_differences(now);
    }

    /// An operator has told this node, in an answer sealed to it, that it was revoked.
    pub(super) fn expelled(&mut self) {
        self.is_expelled = true;
        if !std::mem::replace(&mut self.told_revoked, true) {
            self.event(Event::Revoked);
        }
    }

    /// Returns whether this node was revoked, as far as it knows.
    pub(super) fn is_revoked(&self) -> bool {
        self.is_expelled || self.trust.is_revoked(&self.me.id)
    }

    /// Returns whether this node's own record has expired, as far as it can judge.
    pub(super) fn is_expired(&self, now: Now) -> bool {
        self.endpoint.judging_time(now).is_some_and(|time| self.me.expires <= time)
    }

    /// Returns whether the end of the membership is near.
    pub(super) fn expires_soon(&self, now: Now) -> bool {
        let time = self.endpoint.judging_time(now);
        time.is_some_and(|time| self.me.expires <= time.after(EXPIRY_WARNING))
    }

    /// Opens the EndDevice records anew: after a change of the set, or of the keys.
    pub(super) fn reread_devices(&mut self) {
        let domain = self.me.id.domain;
        let mut devices = BTreeMap::new();
        let live = self.records.list(Table::EndDevice, domain, None).filter(|r| !r.header().removed);
        for record in live {
            if EndDevice::check_public(record).is_err() {
                continue;
            }
            let body = record.read_private(&self.keys, self.endpoint.crypto(), EndDevice::read);
            if let Ok(device) = body
                && record.header().key == self.keys.device_record_key(&device.device)
            {
                devices.insert(device.device, (record.header().key, device));
            }
        }
        self.devices = devices;
    }

    /// Draws the consequences of another set of devices.
    pub(super) fn devices_changed(&mut self, now: Now) {
        self.reread_devices();
        self.event(Event::DevicesChanged);
        self.review_serving(now);
        self.review_watched(now);
    }
}
