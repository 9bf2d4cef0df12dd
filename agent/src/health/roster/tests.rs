//! Rosters with a clock of their own.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn pod(name: &str, last: u8, probes: Vec<Probe>) -> Arc<Workload> {
    Arc::new(Workload {
        name: ObjectName::new("default", name),
        uid: format!("uid-{name}").into(),
        workload: name.into(),
        node: Some("n1".into()),
        service_account: "default".into(),
        addresses: vec![[10, 0, 0, last].into()],
        labels: Arc::default(),
        accelerated: true,
        ready: true,
        probes,
    })
}

fn tcp(port: u16) -> Probe {
    Probe::new(ProbeCheck::Tcp { port })
}

/// A roster with a clock of its own, in milliseconds.
struct Run {
    roster: Roster,
    begin: Instant,
    now: u64,
}

impl Run {
    fn new() -> Self {
        let mut seed = 0_u64;
        let random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        Self { roster: Roster::new(random), begin: Instant::now(), now: 0 }
    }

    fn at(&self) -> Instant {
        self.begin + Duration::from_millis(self.now)
    }

    fn clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.now)
    }

    fn follow(&mut self, pods: &[Arc<Workload>]) {
        let (at, clock) = (self.at(), self.clock());
        self.roster.follow(pods.iter(), at, clock);
    }

    /// Goes on to the next time at which somebody is asked, and gives all jobs.
    fn next(&mut self) -> Vec<Job> {
        let due = self.roster.next_due().expect("somebody is to be asked");
        let ahead = due.saturating_duration_since(self.begin);
        self.now = self.now.max(u64::try_from(ahead.as_millis()).expect("soon") + 1);
        let at = self.at();
        self.roster.take_due(at, usize::MAX)
    }

    fn tell(&mut self, job: &Job, outcome: Result<(), &str>) {
        let (at, clock) = (self.at(), self.clock());
        self.roster.told(job.id, Some(outcome.map_err(str::to_owned)), at, clock);
    }

    fn failing(&self) -> Vec<(String, String)> {
        let health = self.roster.health(0);
        health.failing.values().map(|one| (one.pod.name.to_string(), one.why.clone())).collect()
    }
}

fn out(name: &str, why: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), why.to_owned())]
}

#[test]
fn a_pod_goes_and_comes_by_its_outcomes() {
    let mut run = Run::new();
    run.follow(&[pod("a", 1, vec![tcp(80)])]);
    assert_eq!(run.failing(), [], "who was there at the start counts as the documents say");
    let job = run.next().remove(0);
    assert_eq!((job.address, job.timeout), (([10, 0, 0, 1], 80).into(), Probe::TIMEOUT));
    run.tell(&job, Ok(()));
    let job = run.next().remove(0);
    run.tell(&job, Err("HTTP 503"));
    assert_eq!(run.failing(), out("a", "HTTP 503"));
    let since = run.clock();
    let job = run.next().remove(0);
    run.tell(&job, Err("refused"));
    assert_eq!(run.failing(), out("a", "refused"), "why is what was found last");
    let health = run.roster.health(3);
    assert_eq!((health.pods, health.failing["uid-a"].since), (3, since));
    let job = run.next().remove(0);
    run.tell(&job, Ok(()));
    assert_eq!(run.failing(), []);
}

#[test]
fn who_comes_later_takes_no_work_before_it_passes() {
    let mut run = Run::new();
    let (a, b) = (pod("a", 1, vec![tcp(80)]), pod("b", 2, vec![tcp(80)]));
    run.follow(std::slice::from_ref(&a));
    run.follow(&[a, b]);
    assert_eq!(run.failing(), out("b", UNASKED));
    let jobs = run.next();
    assert!(run.now < 100, "it is asked at once, and not after its period: {} ms", run.now);
    let mut jobs: Vec<Job> = jobs.into_iter().chain(run.next()).collect();
    jobs.sort_by_key(|job| job.address);
    run.tell(&jobs[1], Err("refused"));
    assert_eq!(run.failing(), out("b", "refused"), "the reason is the one that was found");
    run.tell(&jobs[0], Ok(()));
    assert_eq!(run.failing(), out("b", "refused"));
}

#[test]
fn a_pod_takes_work_while_it_passes_all_probes() {
    let mut run = Run::new();
    run.follow(&[pod("a", 1, vec![tcp(80), tcp(81)])]);
    let mut jobs = run.next();
    while jobs.len() < 2 {
        jobs.extend(run.next());
    }
    jobs.sort_by_key(|job| job.address.port());
    run.tell(&jobs[0], Err("one"));
    run.tell(&jobs[1], Ok(()));
    assert_eq!(run.failing(), out("a", "one"));
}

#[test]
fn what_stays_keeps_its_standing() {
    let mut run = Run::new();
    let a = pod("a", 1, vec![tcp(80)]);
    run.follow(std::slice::from_ref(&a));
    let job = run.next().remove(0);
    // Being asked, and what is followed anew meanwhile asks nobody twice.
    run.follow(std::slice::from_ref(&a));
    assert_eq!(run.roster.next_due(), None);
    run.tell(&job, Err("refused"));
    run.follow(std::slice::from_ref(&a));
    assert_eq!(run.failing(), out("a", "refused"));
    // Another probe begins with the pod's standing.
    run.follow(&[pod("a", 1, vec![tcp(81)])]);
    assert_eq!(run.failing(), out("a", "refused"));
    run.tell(&job, Ok(()));
    assert_eq!(run.failing(), out("a", "refused"), "an outcome of the old one counts no more");
    // At another address it is another one.
    run.follow(&[pod("a", 2, vec![tcp(81)])]);
    assert_eq!(run.failing(), out("a", UNASKED));
    run.follow(&[]);
    assert_eq!((run.failing(), run.roster.next_due()), (vec![], None));
}

#[test]
fn many_pods_are_spread_over_the_period() {
    let mut run = Run::new();
    let pods: Vec<_> = (0..1000_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let mut one = Workload::clone(&pod(&number.to_string(), low, vec![tcp(80)]));
            one.addresses = vec![[10, 0, high, low].into()];
            Arc::new(one)
        })
        .collect();
    run.follow(&pods);
    let mut by_second: BTreeMap<u64, usize> = BTreeMap::new();
    let mut asked = 0;
    while asked < 4000 {
        for job in run.next() {
            *by_second.entry(run.now / 1000).or_default() += 1;
            run.tell(&job, Ok(()));
            asked += 1;
        }
    }
    let most = by_second.values().max().copied().unwrap_or_default();
    assert!(most <= 200, "a second has {most} of about 110: {by_second:?}");
}

proptest! {
    /// A pod is asked again within its period, and a little sooner at the earliest, however long answers take.
    #[test]
    fn the_period_is_kept(period in 1_u64..100, takes in proptest::collection::vec(0_u64..150_000, 1..20)) {
        let mut run = Run::new();
        let probe = Probe { period: Duration::from_secs(period), ..tcp(80) };
        run.follow(&[pod("a", 1, vec![probe])]);
        let mut before = None;
        for takes in takes {
            let job = run.next().remove(0);
            if let Some((asked, told)) = before {
                let since: u64 = run.now - asked;
                prop_assert!(since >= period * 840, "{since}");
                prop_assert!(since <= period * 951 + 2 || run.now <= told + 2, "{since}");
            }
            let asked = run.now;
            run.now += takes;
            prop_assert!(run.roster.next_due().is_none(), "nobody is asked twice at one time");
            run.tell(&job, Ok(()));
            before = Some((asked, run.now));
        }
    }
}
