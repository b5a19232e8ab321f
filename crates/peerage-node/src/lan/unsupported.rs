//! The stand-in for operating systems without an implementation: every call says so.

use peerage_proto::lan::Interface;

use super::{FindDevice, LanError, Presence};

/// Would read this computer's networks; not supported on this operating system.
#[derive(Clone, Debug, Default)]
pub struct Lan {}

impl Lan {
    /// Returns the handle, whose calls all fail.
    pub fn new() -> Self {
        Self::default()
    }

    /// Would return all interfaces.
    ///
    /// # Errors
    /// Always [`LanError::Unsupported`].
    pub fn snapshot(&self) -> impl Future<Output = Result<Vec<Interface>, LanError>> + Send {
        std::future::ready(Err(LanError::Unsupported))
    }

    /// Would return a source of changes.
    ///
    /// # Errors
    /// Always [`LanError::Unsupported`].
    pub fn watch(&self) -> Result<LanChanges, LanError> {
        Err(LanError::Unsupported)
    }

    /// Would look for a device.
    ///
    /// # Errors
    /// Always [`LanError::Unsupported`].
    pub fn find(
        &self,
        _request: &FindDevice,
    ) -> impl Future<Output = Result<Presence, LanError>> + Send + use<> {
        std::future::ready(Err(LanError::Unsupported))
    }
}

/// Would tell of changes; cannot be made on this operating system.
#[derive(Debug)]
pub enum LanChanges {}

impl LanChanges {
    /// Would wait for a change.
    ///
    /// # Errors
    /// Never returns, since no value exists.
    pub fn changed(&mut self) -> std::future::Ready<Result<(), LanError>> {
        match *self {}
    }
}
