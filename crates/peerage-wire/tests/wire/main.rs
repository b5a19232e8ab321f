//! The wire format against checked-in vectors: what RFC 9180 publishes, and what this implementation has once sent.

#[cfg(test)]
mod beacons;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hpke;
#[cfg(test)]
#[path = "../../src/testing.rs"]
mod testing;
#[cfg(test)]
mod vectors;
