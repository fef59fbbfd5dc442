//! The threads that talk to the kernel.
//!
//! Guarantees: no other thread of the daemon blocks on netlink or enters a namespace; a job that
//! panics harms nobody but its caller; a thread that could not come home from a container's namespace
//! runs no further job. It ends, and another takes its place. Those for whom jobs are done take
//! turns, and nobody has more than [`AT_ONCE`] at work: one tenant's crowd does not stop another. What
//! a job takes of a processor's time is [charged](Paces::charge) to whom it is done for.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use v6pod_proto::Uid;

use super::error::{Cause, Error};
use super::firewall::RulesSocket;
use super::message::find_by_name;
use super::namespace::{self, Home, Identity, NetNs};
use super::netlink::RouteSocket;
use super::sysctl::{Conf, Folder, Folders, Procfs};
use crate::fair::FairQueue;
use crate::pace::Paces;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// How many jobs for one user are at work at once, however many threads there are.
const AT_ONCE: usize = 2;

/// A fixed number of threads with a queue before them. Dropping it lets them finish what is queued.
pub struct Workers(Arc<Pool>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts that many threads in the calling thread's namespace. What they do is charged to these paces.
    pub fn start(threads: usize, paces: Paces) -> Result<Self, Error> {
        let home = Arc::new(Home::here()?);
        let jobs = FairQueue::new(AT_ONCE);
        let pool = Arc::new(Pool { jobs, paces, home: Arc::clone(&home) });
        for _ in 0..threads {
            let worker = Worker::open(Arc::clone(&home))?;
            let pool = Arc::clone(&pool);
            spawn(move || pool.serve(worker))
                .map_err(|error| Error::io("start a thread", error))?;
        }
        Ok(Self(pool))
    }

    /// The namespaces that the daemon runs in.
    pub fn home(&self) -> &Home {
        &self.0.home
    }

    /// How many jobs for this user wait or are at work.
    pub fn busy_for(&self, user: Uid) -> usize {
        self.0.jobs.of(user)
    }

    /// Runs a job of the daemon's own on one of the threads.
    pub async fn run<T, E>(
        &self,
        job: impl FnOnce(&mut Worker) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.run_for(Uid::ROOT, job).await
    }

    /// Runs the job on one of the threads when it is this user's turn. Once it has begun it is run to
    /// its end even if nobody waits for it any more; before, it is dropped.
    pub async fn run_for<T, E>(
        &self,
        user: Uid,
        job: impl FnOnce(&mut Worker) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job = Box::new(move |worker: &mut Worker| {
            // Who asks and goes, and asks again, gets no work done for nobody.
            if !answer.is_closed() {
                // An error here: the caller no longer waits, and what the job did stands.
                let _ = answer.send(job(worker));
            }
        });
        self.0.jobs.push(user, job);
        result.await.unwrap_or_else(|_| Err(Error::new("finish a job", Cause::Lost).into()))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.jobs.close();
    }
}

/// One thread: in the daemon's namespace, with a socket there.
#[derive(Debug)]
pub struct Worker {
    /// For links, routes and neighbours of the host.
    pub socket: RouteSocket,
    /// For the firewall's elements.
    pub rules: RulesSocket,
    /// The host's sysctls. None where there is no IPv6 at all.
    sysctls: Option<Folders>,
    /// For those of containers.
    procfs: Procfs,
    home: Arc<Home>,
    lost: bool,
}

impl Worker {
    /// A worker for the calling thread.
    pub fn open(home: Arc<Home>) -> Result<Self, Error> {
        let (socket, rules) = (RouteSocket::route()?, RulesSocket::open()?);
        let (sysctls, procfs) = (Folders::here().ok(), Procfs::make());
        Ok(Self { socket, rules, sysctls, procfs, home, lost: false })
    }

    /// The namespaces that the daemon runs in.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The host's settings of one interface.
    pub fn conf(&self, conf: Conf<'_>) -> Result<Folder, Error> {
        match &self.sysctls {
            Some(sysctls) => sysctls.open(conf),
            None => Folders::here()?.open(conf),
        }
    }

    /// One round trip: whether the kernel still answers this thread.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.socket.get("look at lo", &find_by_name("lo"), |_, _| Some(())).map(drop)
    }

    /// Runs `job` inside another namespace: this thread's sysctl files and new sockets are those of
    /// that namespace until it returns, also by a panic.
    pub fn inside<T, E: From<Error>>(
        &mut self,
        namespace: &NetNs,
        job: impl FnOnce(Inside<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.lost {
            return Err(Error::new("enter a namespace", Cause::Lost).into());
        }
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::io("enter a namespace", errno))?;
        let procfs = &mut self.procfs;
        let result = catch_unwind(AssertUnwindSafe(|| {
            job(Inside { socket: RouteSocket::route()?, procfs })
        }));
        if let Err(errno) = setns(&*self.home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "a thread cannot leave a namespace; it is given up");
            self.lost = true;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Which namespace it is.
    pub fn identify(&mut self, namespace: &NetNs) -> Result<Identity, Error> {
        let cookie = self.inside(namespace, |inside| inside.cookie())?;
        Ok(Identity { inode: namespace.inode(), cookie })
    }
}

/// What a job has while it is inside a namespace.
#[derive(Debug)]
pub struct Inside<'a> {
    /// For that namespace's links, addresses and routes.
    pub socket: RouteSocket,
    procfs: &'a mut Procfs,
}

impl Inside<'_> {
    /// That namespace's sysctls.
    pub fn sysctls(&mut self) -> Result<Folders, Error> {
        self.procfs.here()
    }

    /// The namespace's cookie; none before Linux 5.14.
    pub fn cookie(&self) -> Result<Option<u64>, Error> {
        namespace::cookie(&self.socket)
    }
}

/// What the calling thread has had of processors' time.
pub(crate) fn processor_time() -> Duration {
    // Never negative, and never fails: it is this thread's own clock.
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

struct Pool {
    jobs: FairQueue<Uid, Job>,
    paces: Paces,
    home: Arc<Home>,
}

impl Pool {
    fn serve(self: Arc<Self>, mut worker: Worker) {
        while self.serve_one(&mut worker) {}
        if worker.lost {
            self.replace();
        }
    }

    /// Runs the next job. False if the thread is to end: there will be no more, or it is lost.
    fn serve_one(&self, worker: &mut Worker) -> bool {
        let Some(mut turn) = self.jobs.next() else { return false };
        let Some(job) = turn.take() else { return true };
        let began = processor_time();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
            tracing::error!(panic = panic_text(panic.as_ref()), "a job panicked");
            worker.lost = true;
        }
        let took = processor_time().saturating_sub(began);
        self.paces.charge(turn.owner(), took, Instant::now());
        drop(turn);
        worker.procfs.renew();
        !worker.lost
    }

    /// Starts another thread. A thread is born into its maker's namespace, which may be the wrong one:
    /// the new one goes home before it does anything else.
    fn replace(self: Arc<Self>) {
        let start = move |pool: &Arc<Self>| {
            let pool = Arc::clone(pool);
            spawn(move || {
                let worker = until_it_works("go home", || {
                    setns(&*pool.home, CloneFlags::CLONE_NEWNET)
                        .map_err(|errno| Error::io("go home", errno))?;
                    Worker::open(Arc::clone(&pool.home))
                });
                pool.serve(worker);
            })
        };
        until_it_works("start a thread", || start(&self));
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("v6pod-kernel".into()).spawn(body).map(drop)
}

/// What fails here fails for want of memory, threads or descriptors, and a daemon without workers is
/// worth nothing: the thread has nothing better to do than to try again.
fn until_it_works<T, E: std::fmt::Display>(
    doing: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => tracing::error!(%error, "cannot {doing}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use std::fs::read_link;

    use super::*;
    use crate::kernel::testing::{Container, in_netns};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn here() -> String {
        read_link("/proc/thread-self/ns/net").unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn a_worker_is_inside_only_as_long_as_the_job_and_comes_home_by_a_panic_too() {
        in_netns(|| {
            let workers = Workers::start(1, Paces::default()).unwrap();
            let (home, container) = (here(), Container::new());
            let there = container.enter(here);
            let fd = container.fd();
            let seen = block_on(workers.run(move |worker| {
                let ns = NetNs::verify(fd, worker.home()).map_err(|refused| refused.why).unwrap();
                let before = here();
                let inside = worker.inside(&ns, |_| Ok::<_, Error>(here()))?;
                let panic = catch_unwind(AssertUnwindSafe(|| {
                    worker.inside(&ns, |_| -> Result<(), Error> { panic!("inside") })
                }));
                assert!(panic.is_err());
                Ok::<_, Error>([before, inside, here()])
            }));
            assert_eq!(seen.unwrap(), [home.clone(), there, home]);
        });
    }

    #[test]
    fn a_job_that_panics_takes_no_other_with_it() {
        in_netns(|| {
            let workers = Workers::start(1, Paces::default()).unwrap();
            let home = here();
            for _ in 0..3 {
                let lost = block_on(workers.run(|_| -> Result<(), Error> { panic!("a test") }));
                assert!(lost.unwrap_err().to_string().contains("panicked"));
            }
            let at = block_on(workers.run(|worker| worker.ping().map(|()| here())));
            assert_eq!(at.unwrap(), home);
        });
    }

    #[test]
    fn attack_26_a_job_that_nobody_waits_for_any_more_is_not_begun() {
        in_netns(|| {
            let workers = Workers::start(1, Paces::default()).unwrap();
            let (release, hold) = std::sync::mpsc::channel::<()>();
            let done = block_on(async {
                let first = workers.run(move |_| hold.recv().map_err(|_| lost()));
                let mut first = std::pin::pin!(first);
                let abandoned = workers.run(|_| -> Result<(), Error> { panic!("begun") });
                // Both are queued once they have been polled; then the second is forgotten.
                tokio::select! { biased; _ = &mut first => {} () = async {} => {} }
                tokio::select! { biased; _ = abandoned => {} () = async {} => {} }
                release.send(()).unwrap();
                first.await.unwrap();
                workers.run(|_| Ok::<_, Error>(5)).await
            });
            assert_eq!(done.unwrap(), 5);
        });
    }

    fn lost() -> Error {
        Error::new("test", Cause::Lost)
    }

    #[test]
    fn a_worker_that_is_lost_is_replaced_by_one_at_home() {
        in_netns(|| {
            let workers = Workers::start(1, Paces::default()).unwrap();
            let (home, container) = (here(), Container::new());
            let fd = container.fd();
            block_on(workers.run(move |worker| {
                // As if the way home had failed.
                setns(&fd, CloneFlags::CLONE_NEWNET).unwrap();
                worker.lost = true;
                Ok::<_, Error>(())
            }))
            .unwrap();
            let at = block_on(workers.run(|_| Ok::<_, Error>(here()))).unwrap();
            assert_eq!(at, home);
        });
    }
}
