//! What crosses a Peerage network: ids, records, messages, sealing, session frames and their limits.
//!
//! Nothing here does I/O, reads a clock or draws randomness of its own: callers pass the time and a
//! random generator. `docs/PROTOCOL.md` specifies every byte; `Rule N.M` in comments and tests refers to it.
//!
//! The way of a datagram in: [`packet::Packet::parse`] finds its form, [`seal`] opens it with keys that
//! [`crypto`] agreed, [`message::Request::decode`] or [`message::Reply::decode`] reads the command, and
//! [`record::UnverifiedRecord::parse`] with [`record::UnverifiedRecord::verify`] turns carried bytes into records that
//! can be believed.

pub mod beacon;
pub mod cbor;
pub mod codec;
pub mod crypto;
pub mod enrol;
pub mod frame;
pub mod id;
pub mod intro;
pub mod keys;
pub mod leg;
pub mod limits;
pub mod message;
pub mod open;
pub mod packet;
pub mod prepared;
pub mod record;
pub mod seal;
#[cfg(test)]
mod testing;
pub mod time;
pub mod token;
