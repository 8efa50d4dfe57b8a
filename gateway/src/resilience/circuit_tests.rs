use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const RULES: CircuitRules = CircuitRules {
    failure_rate: 50,
    minimum: 4,
    window: Duration::from_secs(10),
    slow_rate: 80,
    open_for: Duration::from_secs(30),
    probes: 2,
};

fn call(circuit: &Arc<Circuit>, verdict: Verdict) -> bool {
    circuit.enter(&RULES).map(|mut pass| pass.tell(verdict)).is_ok()
}

#[tokio::test(start_paused = true)]
async fn it_opens_tries_and_closes() {
    let circuit = Circuit::new("c".into());
    for verdict in [Verdict::Success, Verdict::Failure, Verdict::Success] {
        assert!(call(&circuit, verdict));
    }
    assert_eq!(circuit.shown().word, "closed", "three calls are not enough");
    assert!(call(&circuit, Verdict::Failure));
    assert_eq!(circuit.shown().word, "open");
    assert_eq!(circuit.enter(&RULES).err(), Some(Duration::from_secs(30)));
    tokio::time::advance(Duration::from_secs(30)).await;
    let (first, second) = (circuit.enter(&RULES), circuit.enter(&RULES));
    assert!(first.is_ok() && second.is_ok());
    assert!(circuit.enter(&RULES).is_err(), "no more than the probes");
    drop(second);
    first.unwrap().tell(Verdict::Success);
    assert!(call(&circuit, Verdict::Success), "a probe that left makes room for another");
    assert_eq!((circuit.shown().word, circuit.shown().events), ("closed", [1, 1, 1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_again() {
    let circuit = Circuit::new("c".into());
    (0..4).for_each(|_| assert!(call(&circuit, Verdict::Failure)));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(call(&circuit, Verdict::Slow));
    assert_eq!(circuit.enter(&RULES).err(), Some(Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn what_began_before_a_change_says_nothing_after_it() {
    let circuit = Circuit::new("c".into());
    let mut early: Vec<_> = (0..8).map(|_| circuit.enter(&RULES).unwrap_or_else(|_| panic!("closed"))).collect();
    (0..4).for_each(|_| assert!(call(&circuit, Verdict::Failure)));
    tokio::time::advance(Duration::from_secs(31)).await;
    let mut probe = circuit.enter(&RULES).unwrap_or_else(|_| panic!("a probe"));
    early.iter_mut().for_each(|pass| pass.tell(Verdict::Failure));
    assert_eq!(circuit.shown().word, "trying");
    probe.tell(Verdict::Success);
    assert!(call(&circuit, Verdict::Success));
    assert_eq!(circuit.shown().word, "closed");
}

#[tokio::test(start_paused = true)]
async fn a_success_may_be_the_call_that_makes_the_minimum() {
    let circuit = Circuit::new("c".into());
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Success] {
        assert!(call(&circuit, verdict));
    }
    assert_eq!(circuit.shown().word, "closed");
    assert!(call(&circuit, Verdict::Success));
    assert_eq!(circuit.shown().word, "open");
}

#[derive(Debug, Clone)]
enum Step {
    Call(Verdict),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![3 => Just(Verdict::Success), 2 => Just(Verdict::Failure), 1 => Just(Verdict::Slow)];
    let step = prop_oneof![4 => verdict.prop_map(Step::Call), 1 => (0u64..20_000).prop_map(Step::Pass)];
    proptest::collection::vec(step, 1..120)
}

/// The same in plain words: a list of calls, looked through each time.
struct Model {
    open_until: Option<u64>,
    trying: Option<u32>,
    calls: VecDeque<(u64, Verdict)>,
}

impl Model {
    fn call(&mut self, now: u64, verdict: Verdict) -> bool {
        if let Some(until) = self.open_until {
            if now < until {
                return false;
            }
            (self.open_until, self.trying) = (None, Some(0));
        }
        if let Some(succeeded) = &mut self.trying {
            if verdict == Verdict::Success {
                *succeeded += 1;
                if *succeeded == RULES.probes {
                    self.trying = None;
                    self.calls.clear();
                }
            } else {
                (self.open_until, self.trying) = (Some(now + 30_000), None);
            }
            return true;
        }
        self.calls.push_back((now / 1000, verdict));
        self.calls.retain(|(part, _)| part + 10 > now / 1000);
        let (all, failed, slow) = (self.calls.len(), self.of(Verdict::Failure), self.of(Verdict::Slow));
        if all >= 4 && ((failed > 0 && failed * 100 >= all * 50) || (slow > 0 && slow * 100 >= all * 80)) {
            self.open_until = Some(now + 30_000);
            self.calls.clear();
        }
        true
    }

    fn of(&self, verdict: Verdict) -> usize {
        self.calls.iter().filter(|(_, v)| *v == verdict).count()
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let circuit = Circuit::new("c".into());
            let mut model = Model { open_until: None, trying: None, calls: VecDeque::new() };
            let begun = Instant::now();
            for (i, step) in steps.iter().enumerate() {
                let now = begun.elapsed().as_millis() as u64;
                match step {
                    Step::Call(verdict) => {
                        let let_through = call(&circuit, *verdict);
                        prop_assert_eq!(let_through, model.call(now, *verdict), "step {} of {:?}", i, steps);
                    }
                    Step::Pass(millis) => tokio::time::advance(Duration::from_millis(*millis)).await,
                }
            }
            Ok(())
        })?;
    }
}
