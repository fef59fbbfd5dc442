//! Times, and what they come to.

use std::collections::BTreeMap;
use std::time::Duration;

/// One thing that is measured, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    Floor,
    Wire,
    Total,
    RoundTrip,
    Shim,
    IpBatch,
    Cni,
    Netavark,
    PodmanPlain,
    PodmanV6pod,
}

impl Series {
    pub(crate) const ALL: [Self; 10] = [
        Self::Floor,
        Self::Wire,
        Self::Total,
        Self::RoundTrip,
        Self::Shim,
        Self::IpBatch,
        Self::Cni,
        Self::Netavark,
        Self::PodmanPlain,
        Self::PodmanV6pod,
    ];
}

/// All times of one series, or why there are none or no more.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    times: Vec<Duration>,
    pub(crate) not_run: Option<String>,
}

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// With the times of others.
    pub(crate) fn and(mut self, others: &Self) -> Self {
        self.times.extend(&others.times);
        self
    }

    pub(crate) fn count(&self) -> usize {
        self.times.len()
    }

    /// The time that `percent` of all do not exceed (nearest rank); none without any.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    pub(crate) fn median(&self) -> Option<Duration> {
        self.percentile(50)
    }
}

/// All series.
#[derive(Debug, Default)]
pub(crate) struct Book(BTreeMap<Series, Samples>);

impl Book {
    pub(crate) fn add(&mut self, took: &[(Series, Duration)]) {
        for (series, time) in took {
            self.0.entry(*series).or_default().add(*time);
        }
    }

    /// Notes why there is nothing, or nothing more, of these.
    pub(crate) fn not_run(&mut self, series: &[Series], reason: &str) {
        for series in series {
            self.0.entry(*series).or_default().not_run.get_or_insert_with(|| reason.to_owned());
        }
    }

    pub(crate) fn of(&self, series: Series) -> Option<&Samples> {
        self.0.get(&series)
    }

    /// The median of the one divided by that of the other.
    pub(crate) fn ratio(&self, one: Series, other: Series) -> Option<f64> {
        let median = |series| Some(self.of(series)?.median()?.as_secs_f64());
        Some(median(one)? / median(other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(of: &[(Series, u64)]) -> Book {
        let mut book = Book::default();
        let took: Vec<_> = of.iter().map(|(s, ms)| (*s, Duration::from_millis(*ms))).collect();
        book.add(&took);
        book
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let book = book(&(1..=10).map(|n| (Series::Floor, n)).collect::<Vec<_>>());
        let samples = book.of(Series::Floor).unwrap();
        let at = |percent| samples.percentile(percent).unwrap().as_millis();
        assert_eq!((at(0), at(10), at(50), at(90), at(100)), (1, 1, 5, 9, 10));
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn a_ratio_needs_both() {
        let book = book(&[(Series::Total, 3), (Series::Floor, 2)]);
        assert_eq!(book.ratio(Series::Total, Series::Floor), Some(1.5));
        assert_eq!(book.ratio(Series::Total, Series::Cni), None);
    }

    #[test]
    fn the_first_reason_stays() {
        let mut book = Book::default();
        book.not_run(&[Series::Cni], "one");
        book.not_run(&[Series::Cni], "two");
        assert_eq!(book.of(Series::Cni).unwrap().not_run.as_deref(), Some("one"));
    }
}
