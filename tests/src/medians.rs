//! How much slower something is while somebody is in its way.

use std::fmt;
use std::time::Duration;

/// How long something takes, at rest and flooded.
#[derive(Debug, Clone, Copy)]
pub struct Medians {
    /// With nobody in its way.
    pub rest: Duration,
    /// With somebody.
    pub flooded: Duration,
}

impl Medians {
    /// Of these times. Neither is empty.
    pub fn of(
        rest: impl IntoIterator<Item = Duration>,
        flooded: impl IntoIterator<Item = Duration>,
    ) -> Self {
        Self { rest: median(rest), flooded: median(flooded) }
    }

    /// Whether it takes less than twice the time, as nobody is to have more from another.
    pub fn is_bearable(&self) -> bool {
        self.flooded < 2 * self.rest
    }
}

impl fmt::Display for Medians {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rest, flooded } = self;
        let times = flooded.as_secs_f64() / rest.as_secs_f64();
        write!(f, "{flooded:.1?}, {times:.2} × {rest:.1?}")
    }
}

fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_time_is_too_long() {
        let [one, two] = [1, 2].map(Duration::from_secs);
        let nearly = two - Duration::from_nanos(1);
        assert!(!Medians::of([one], [two]).is_bearable());
        let medians = Medians::of([one, two, one], [nearly]);
        assert!(medians.is_bearable());
        assert_eq!(medians.to_string(), "2.0s, 2.00 × 1.0s");
    }
}
