//! How full tables are, so that an invariant can look at all of them from outside.

/// One table, queue or list of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// What is in it.
    pub name: &'static str,
    /// How many entries it has.
    pub len: usize,
    /// How many it may have.
    pub limit: usize,
}

impl TableSize {
    /// Makes an entry of a list of tables.
    pub const fn new(name: &'static str, len: usize, limit: usize) -> Self {
        Self { name, len, limit }
    }

    /// Returns whether there is more in it than may be.
    pub const fn is_exceeded(&self) -> bool {
        self.len > self.limit
    }
}
