//! Which of the machine's processors a test and what it starts have: so that who floods takes no
//! time of the processors of whom is measured.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread's processors, in two halves. It has all of them back when this is dropped.
#[derive(Debug)]
pub struct Halves {
    all: Vec<usize>,
}

impl Halves {
    /// Divides them. Where there is one alone, it is both halves.
    #[track_caller]
    pub fn of_this_thread() -> Self {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("asking for processors");
        let all = (0..CpuSet::count()).filter(|&one| set.is_set(one).unwrap_or(false)).collect();
        Self { all }
    }

    /// Has this thread, and what it starts from now on, run on the first half.
    #[track_caller]
    pub fn first(&self) {
        run_on(&self.all[..self.all.len().div_ceil(2)]);
    }

    /// On the other.
    #[track_caller]
    pub fn second(&self) {
        run_on(&self.all[self.all.len() / 2..]);
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        run_on(&self.all);
    }
}

#[track_caller]
fn run_on(processors: &[usize]) {
    let mut set = CpuSet::new();
    processors.iter().for_each(|&one| set.set(one).expect("a processor's number"));
    sched_setaffinity(Pid::from_raw(0), &set).expect("choosing processors");
}
