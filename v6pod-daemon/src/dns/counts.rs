//! What has become of questions, in numbers.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of questions and connections, from the start of the daemon. Clones are the same counters. No
/// label says who asks, or for what.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    questions: Family<[(&'static str, &'static str); 1], Counter<u64, AtomicU64>>,
    refused: Counter<u64, AtomicU64>,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was about our zone, or our addresses, and was answered; what is not there is answered too.
    Ours,
    /// Another resolver's answer was passed on.
    PassedOn,
    /// No other resolver answered.
    Unanswered,
    /// It is none that this asker is answered, or none that anybody is.
    Refused,
    /// Too many of its owner's, or of all, are on their way to other resolvers.
    TooMany,
}

impl Counts {
    /// Makes the counters known under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "dns_questions",
            "Questions for names, by what became of them",
            self.questions.clone(),
        );
        registry.register(
            "dns_connections_refused",
            "Connections for questions that were closed because there were too many",
            self.refused.clone(),
        );
    }

    pub(super) fn question(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Ours => "ours",
            Outcome::PassedOn => "passed-on",
            Outcome::Unanswered => "unanswered",
            Outcome::Refused => "refused",
            Outcome::TooMany => "too-many",
        };
        self.questions.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn connection_refused(&self) {
        self.refused.inc();
    }

    /// For a test of what is told.
    #[cfg(test)]
    pub(crate) fn count_one(&self) {
        self.question(Outcome::Ours);
    }

    #[cfg(test)]
    pub(super) fn of(&self, outcome: &'static str) -> u64 {
        self.questions.get_or_create(&[("outcome", outcome)]).get()
    }
}
