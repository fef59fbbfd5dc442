//! Looks at a container's addresses as often as it can: "at no moment without one" is a claim about
//! each moment.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::within;

/// A thread that looks about each millisecond, until it is dropped or asked what it saw.
#[derive(Debug)]
pub struct Sampler {
    over: Arc<AtomicBool>,
    samples: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Sampler {
    /// Looks at `eth0` of this network from now on.
    pub fn start(network: File) -> Self {
        let (over, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&samples));
        let look = move || within(&network, || watch(&ends, &counts));
        Self { over, samples, thread: Some(thread::spawn(look)) }
    }

    /// Ends; gives how often it has looked. Fails if there was one look at which it saw no valid address.
    #[track_caller]
    pub fn saw_an_address_each_time(mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        let seen = self.thread.take().expect("it runs").join().expect("the thread");
        seen.expect("a valid address at every moment");
        let samples = self.samples.load(Ordering::Relaxed);
        assert!(samples > 100, "{samples} samples are too few to say anything");
        samples
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Valid are those that are not tentative and have not failed; `/proc/net/if_inet6` is read in one go.
fn watch(over: &AtomicBool, samples: &AtomicUsize) -> Result<(), String> {
    const GLOBAL: &str = "00";
    const TENTATIVE_OR_FAILED: u8 = 0x40 | 0x08;

    while !over.load(Ordering::Relaxed) {
        let table = fs::read_to_string("/proc/thread-self/net/if_inet6")
            .map_err(|error| error.to_string())?;
        let valid = table.lines().filter(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, scope, flags, "eth0"] = fields[..] else { return false };
            let flags = u8::from_str_radix(flags, 16).unwrap_or(u8::MAX);
            scope == GLOBAL && flags & TENTATIVE_OR_FAILED == 0
        });
        if valid.count() == 0 {
            return Err(format!("none:\n{table}"));
        }
        samples.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
