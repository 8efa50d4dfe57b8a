use super::*;
use futures_like::{begin, settle};

/// Starts waits one after the other without a runtime of threads.
mod futures_like {
    use super::*;
    use tokio::task::JoinHandle;

    pub fn begin(limiter: &Arc<Limiter>, rules: LimitRules, priority: Priority) -> JoinHandle<Answer> {
        let limiter = limiter.clone();
        tokio::spawn(async move { limiter.enter(&rules, priority).await })
    }

    /// Lets all tasks run as far as they can.
    pub async fn settle() {
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
    }
}

fn rules(limit: u32, queue: u32) -> LimitRules {
    LimitRules { limit, adaptive: None, queue, queue_timeout: Duration::from_secs(1), reserve: 0 }
}

#[tokio::test(start_paused = true)]
async fn so_many_at_once_and_the_others_wait_their_turn() {
    let rules = rules(2, 2);
    let limiter = Limiter::new("x", &rules);
    let first = limiter.enter(&rules, Priority::Normal).await.ok().unwrap();
    let _second = limiter.enter(&rules, Priority::Normal).await.ok().unwrap();
    let third = begin(&limiter, rules, Priority::Normal);
    settle().await;
    let fourth = begin(&limiter, rules, Priority::Normal);
    settle().await;
    assert_eq!(limiter.enter(&rules, Priority::Normal).await.err(), Some(Shed::Full));
    assert_eq!((limiter.state().under_way, limiter.state().waiting), (2, 2));
    drop(first);
    let third = third.await.unwrap();
    assert!(third.is_ok() && !fourth.is_finished(), "who came first is served first");
    assert_eq!(fourth.await.unwrap().err(), Some(Shed::TimedOut));
    drop(third);
    assert_eq!((limiter.state().under_way, limiter.state().waiting, limiter.state().shed), (1, 0, [0, 2, 0, 0]));
}

#[tokio::test(start_paused = true)]
async fn low_priority_is_refused_first() {
    let rules = rules(1, 2);
    let limiter = Limiter::new("x", &rules);
    let place = limiter.enter(&rules, Priority::Low).await.ok().unwrap();
    let low = begin(&limiter, rules, Priority::Low);
    settle().await;
    let later = begin(&limiter, rules, Priority::Low);
    settle().await;
    let normal = begin(&limiter, rules, Priority::Normal);
    settle().await;
    assert_eq!(later.await.unwrap().err(), Some(Shed::Displaced), "the last of the lowest goes");
    let critical = begin(&limiter, rules, Priority::Critical);
    settle().await;
    assert_eq!(low.await.unwrap().err(), Some(Shed::Displaced));
    assert_eq!(limiter.enter(&rules, Priority::Normal).await.err(), Some(Shed::Full), "the same does not displace the same");
    drop(place);
    let critical = critical.await.unwrap();
    assert!(critical.is_ok() && !normal.is_finished(), "the highest first");
    drop(critical);
    assert!(normal.await.unwrap().is_ok());
    assert_eq!(limiter.state().shed, [2, 1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_part_of_the_places_is_kept_from_low_priority() {
    let rules = LimitRules { reserve: 20, ..rules(10, 0) };
    let limiter = Limiter::new("x", &rules);
    let mut places = Vec::new();
    for _ in 0..8 {
        places.push(limiter.enter(&rules, Priority::Low).await.ok().unwrap());
    }
    assert_eq!(limiter.enter(&rules, Priority::Low).await.err(), Some(Shed::Full));
    for _ in 0..2 {
        places.push(limiter.enter(&rules, Priority::Normal).await.ok().unwrap());
    }
    assert_eq!(limiter.enter(&rules, Priority::Critical).await.err(), Some(Shed::Full));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_low_priority_does_not_hold_up_a_higher_one() {
    let rules = LimitRules { reserve: 50, ..rules(2, 4) };
    let limiter = Limiter::new("x", &rules);
    let _place = limiter.enter(&rules, Priority::Low).await.ok().unwrap();
    let low = begin(&limiter, rules, Priority::Low);
    settle().await;
    let high = limiter.enter(&rules, Priority::High).await;
    assert!(high.is_ok() && !low.is_finished());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_leaves_no_trace() {
    let rules = rules(1, 4);
    let limiter = Limiter::new("x", &rules);
    let place = limiter.enter(&rules, Priority::Normal).await.ok().unwrap();
    let gone = begin(&limiter, rules, Priority::Normal);
    settle().await;
    let stays = begin(&limiter, rules, Priority::Normal);
    settle().await;
    gone.abort();
    settle().await;
    assert_eq!(limiter.state().waiting, 1);
    drop(place);
    drop(stays.await.unwrap());
    assert_eq!((limiter.state().under_way, limiter.state().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_given_to_one_who_just_left_goes_back() {
    let rules = rules(1, 4);
    let limiter = Limiter::new("x", &rules);
    let place = limiter.enter(&rules, Priority::Normal).await.ok().unwrap();
    let gone = begin(&limiter, rules, Priority::Normal);
    settle().await;
    drop(place);
    gone.abort();
    settle().await;
    drop(gone);
    assert!(limiter.enter(&rules, Priority::Normal).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_configuration_counts_at_once() {
    let small = rules(1, 4);
    let limiter = Limiter::new("x", &small);
    let _one = limiter.enter(&small, Priority::Normal).await.ok().unwrap();
    let waits = begin(&limiter, small, Priority::Normal);
    settle().await;
    assert!(!waits.is_finished());
    limiter.configure(&rules(2, 4));
    assert!(waits.await.unwrap().is_ok());
    limiter.configure(&small);
    assert_eq!(limiter.state().limit, 1);
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_outlives_a_reload() {
    let own = AdaptiveRules { min: 2, max: 50, tolerance: 2.0, window: Duration::from_millis(100), probe: Duration::from_secs(60) };
    let rules = LimitRules { adaptive: Some(own), ..rules(20, 0) };
    let limiter = Limiter::new("x", &rules);
    assert_eq!(limiter.state().limit, 2, "it begins by finding out the latency without load");
    for _ in 0..ENOUGH {
        let mut permit = limiter.enter(&rules, Priority::Normal).await.ok().unwrap();
        tokio::time::advance(Duration::from_millis(30)).await;
        permit.answered(false);
    }
    assert_eq!(limiter.state().limit, 20);
    limiter.configure(&LimitRules { queue: 7, ..rules });
    assert_eq!(limiter.state().limit, 20);
    limiter.configure(&LimitRules { adaptive: Some(AdaptiveRules { max: 10, ..own }), ..rules });
    assert_eq!(limiter.state().limit, 10);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_hears_when_to_come_again() {
    let rules = rules(10, 0);
    let limiter = Limiter::new("x", &rules);
    assert_eq!(limiter.come_again(), Duration::from_secs(1), "nothing is known of the pace");
    // Two places a second become free, and ten are taken.
    for _ in 0..8 {
        drop(limiter.enter(&rules, Priority::Normal).await);
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(limiter.enter(&rules, Priority::Normal).await.ok().unwrap());
    }
    for _ in 0..50 {
        let wait = limiter.come_again().as_secs_f64();
        assert!((5.0..=7.5).contains(&wait), "{wait}");
    }
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(limiter.come_again(), Duration::from_secs(1), "that was long ago");
}

/// Whatever comes and goes on however many threads: never more than the limit at once, and at the end nothing is left.
#[test]
fn under_many_threads_the_limit_holds() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        let rules = LimitRules { queue_timeout: Duration::from_secs(60), ..rules(5, 1000) };
        let limiter = Limiter::new("x", &rules);
        let now = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..400)
            .map(|i| {
                let (limiter, now) = (limiter.clone(), now.clone());
                tokio::spawn(async move {
                    let permit = limiter.enter(&rules, Priority::ALL[i % 4]).await.ok().expect("a place");
                    assert!(now.fetch_add(1, SeqCst) < 5);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, SeqCst);
                    drop(permit);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!((limiter.state().under_way, limiter.state().waiting), (0, 0));
    });
}
