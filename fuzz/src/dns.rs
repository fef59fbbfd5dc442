//! What comes by DNS: from containers, and from the resolvers that are asked for them.

use v6pod_daemon::fuzz;

/// A message of who asks; see [`fuzz::dns_question`].
pub fn dns_question(data: &[u8]) {
    fuzz::dns_question(data);
}

/// A message of another resolver's; see [`fuzz::dns_answer`].
pub fn dns_answer(data: &[u8]) {
    fuzz::dns_answer(data);
}
