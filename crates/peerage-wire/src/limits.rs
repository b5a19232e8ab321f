//! Sizes and lifetimes that both ends of a conversation must agree on.

use std::time::Duration;

/// Longest datagram, in bytes. 1,280 is the smallest IPv6 MTU (RFC 8200, section 5); what is left after
/// IPv6 and UDP headers and room for one tunnel header is 1,200. Larger would be lost on some paths,
/// smaller would page lists more often.
pub const MAX_DATAGRAM: usize = 1_200;

/// Longest record including its signature, in bytes: one record must fit into one sealed long-form
/// reply. Enforced when a record is made and when it is read.
pub const MAX_RECORD: usize = 900;

/// Longest NodeInfo record, in bytes. It is the only record that nodes make themselves, so its size bounds
/// what one member can store at a super-node.
pub const MAX_NODE_INFO: usize = 800;

/// Deepest nesting of CBOR in records and messages (Rule 2.1). The deepest legitimate value has four levels.
pub const MAX_CBOR_DEPTH: usize = 6;

/// Private bodies are padded to a multiple of this, so that their length says little.
pub const PRIVATE_BODY_PAD: usize = 64;

/// Longest private body before padding, in bytes: with its length it fills ten pads, the most that leave room
/// for header, signature and tag in a record of [`MAX_RECORD`] bytes.
pub const MAX_PRIVATE_BODY: usize = 10 * PRIVATE_BODY_PAD - 2;

/// Longest sealed datagram that a forwarder passes on, in bytes: it must fit, with both addresses and the
/// return token, into a sealed datagram of [`MAX_DATAGRAM`] bytes.
pub const MAX_FORWARDED: usize = 960;

/// Longest plaintext, in bytes, of a request that goes through a forwarder together with a member's introduction and a cookie.
/// A longer one has to wait until the receiver knows its sender.
pub const MAX_STRANGERS_REQUEST: usize = 399;

/// Longest first flight of a TLS client that a TunnelRequest carries, in bytes; ours has 218. Longer ones would not leave room
/// for candidates in a datagram that is forwarded.
pub const MAX_HELLO: usize = 256;

/// Longest first flight of a TLS server that a TunnelOpened carries, in bytes; ours has 383. With [`MAX_CANDIDATES`] of the
/// longest candidates it fills the answer for which a TunnelRequest is padded.
pub const MAX_FLIGHT: usize = 400;

/// How far a message's time may be from the receiver's corrected time. Wider would have to remember
/// replayed ids for longer; narrower would refuse machines whose clock drifts between two learnings.
pub const TIME_WINDOW: Duration = Duration::from_secs(60);

/// Longest life of a sealing context. Shorter costs more key agreements (some 250 µs each),
/// longer keeps keys in memory for longer.
pub const CONTEXT_LIFETIME: Duration = Duration::from_secs(3_600);

/// Messages after which a context ends: far below the 2^32 random-nonce bound of AES-GCM
/// (NIST SP 800-38D, section 8.3), and what the 24-bit counter of a nonce can tell apart.
pub const MAX_CONTEXT_MESSAGES: u32 = 1 << 24;

/// Life of a sealing key; a new one is made at each start and after this time.
pub const SEALING_KEY_LIFETIME: Duration = Duration::from_secs(24 * 3_600);

/// How long an old sealing key is still accepted after a new one was made.
pub const SEALING_KEY_OVERLAP: Duration = Duration::from_secs(3_600);

/// How far ahead of the receiver's time a record's version may be.
pub const MAX_VERSION_AHEAD: Duration = Duration::from_secs(120);

/// How long the id of a command with effects is remembered, so that it is executed once.
pub const REPLAY_MEMORY: Duration = Duration::from_secs(120);

/// Oldest Head with which a node opens or accepts a tunnel while an operator or super-node answers.
pub const MAX_HEAD_AGE: Duration = Duration::from_secs(60);

/// Most records of any list in one reply.
pub const MAX_LIST: usize = 16;

/// Most Heads that one answer brings: as many as fit into a datagram at 361 bytes each.
pub const MAX_HEADS: usize = 3;

/// Most parts that an answer to Reconcile cuts a stretch into: as many as fit into a datagram with the largest
/// numbers. More parts find a difference in fewer rounds.
pub const MAX_PARTS: usize = 13;

/// Most entries that an answer to Reconcile names one by one: 20 bytes each, about as many as fit into a datagram. More save a
/// round of questions; a hundred thousand records in thirteen parts a round are down to 46 in three.
pub const MAX_ENTRIES: usize = 56;

/// Most services of one device. Sixteen with names of up to 14 bytes fit into one record beside the rest of a
/// usual device; with longer names fewer do, and making the record fails.
pub const MAX_SERVICES: usize = 16;

/// Most locations of one site.
pub const MAX_SITE_LOCATIONS: usize = 8;

/// Most candidates that a node offers.
pub const MAX_CANDIDATES: usize = 20;

/// Most addresses of an operator or super-node in its public record.
pub const MAX_ADDRESSES: usize = 8;

/// Most look-up tags of one NodeInfo that a reader takes: eight locations, each under two keys around a change of
/// day or epoch. With so many there is no room for candidates in [`MAX_NODE_INFO`] bytes; the maker chooses.
pub const MAX_TAGS: usize = 16;

/// Most certificate pins of one device: the running certificate and its successors.
pub const MAX_PINS: usize = 4;

/// Longest name of a device, node, service or domain, in bytes of UTF-8.
pub const MAX_NAME: usize = 64;
