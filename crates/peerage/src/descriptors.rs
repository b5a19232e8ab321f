//! How many descriptors this program may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes as many as the administrator allows.
///
/// Shells and systemd begin programs with 1,024 of some hundred thousand, for those that wait with select(2), which knows no more. A
/// tunnel takes one at each of its nodes, and a pair that is relayed two at the relay, so that they would be what ends first.
pub(crate) fn take_all() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer it works as well, and each limit that follows from it is lower.
        _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_takes_the_descriptors_that_it_may_have() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(600), hard).unwrap();
        take_all();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
