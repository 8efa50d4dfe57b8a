//! `circuit-breaker`: a service that fails is left alone for a while. The circuits themselves are the gateway's.

use crate::{Configured, Live, wrong};
use http::request;
use std::sync::Arc;
use weir_config::{CircuitBreaker, Diagnostic, Node, check_breaker};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, RequestContext, resilience::Guard};

impl Configured for CircuitBreaker {
    const NAME: &'static str = "circuit-breaker";
    // After the caching plugins: whether the cache can answer is known here.
    const PRIORITY: i32 = 90;
    const EXAMPLE: &'static str = "failure_rate: 50
minimum_calls: 20
window: 30s
slow_call: 5s
open_for: 30s
fallback:
  status: 200
  headers: {Content-Type: application/json}
  body: '{\"items\":[]}'
";

    type Ready = CircuitBreaker;

    fn ready(self, at: &Node) -> Result<CircuitBreaker, Vec<Diagnostic>> {
        let errors = check_breaker(&self, at);
        if errors.is_empty() { Ok(self) } else { Err(errors) }
    }

    fn build(ready: CircuitBreaker, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        let service = ready.fallback.as_ref().and_then(|fallback| fallback.service.as_ref()).and_then(|name| env.services.get(name)).cloned();
        let guard = Arc::new(Guard::new(&ready, service, &env.environment.resilience.circuits));
        Arc::new(Breaker { guard, environment: env.environment.clone() })
    }

    fn unknown(ready: &CircuitBreaker, at: &Node, env: &BuildEnv<'_>) -> Vec<Diagnostic> {
        let Some(name) = ready.fallback.as_ref().and_then(|fallback| fallback.service.as_ref()).filter(|name| !env.services.contains_key(*name)) else { return vec![] };
        let error = wrong(at.get("fallback").unwrap_or(at), "service", format!("there is no service `{name}`"));
        vec![error.maybe_hint(weir_config::words::did_you_mean(name, env.services.keys().map(String::as_str)))]
    }
}

struct Breaker {
    guard: Arc<Guard>,
    environment: Arc<Environment>,
}

impl Plugin for Breaker {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn request(&self, cx: &mut RequestContext, _: &mut request::Parts) -> Flow {
        let (Some(service), route) = (cx.service.clone(), cx.route.clone()) else { return Flow::Continue };
        let Some(left) = self.guard.closed_to(&service, route.as_deref()) else {
            cx.guard = Some(self.guard.clone());
            return Flow::Continue;
        };
        let now = weir_cache::clock::now();
        let cached = |plan: &weir_cache::Plan| self.environment.cache.peek(&plan.epoch, &plan.key).is_some_and(|entry| entry.may_stand_in(now));
        let spare = self.guard.service.as_ref();
        if let Some(plan) = &cx.plan
            && (spare.is_none() || (self.guard.stale && cached(plan)))
        {
            // The guard lets nothing through to the service: what the cache has, here or in the store, is served, else the fallback.
            cx.guard = Some(self.guard.clone());
            return Flow::Continue;
        }
        self.guard.turns_away(&service, route.as_deref());
        self.environment.metrics.plugin(CircuitBreaker::NAME, "refused");
        match spare {
            Some(spare) => {
                // What another service says is not kept as this one's.
                cx.plan = None;
                cx.service = Some(spare.clone());
                Flow::Continue
            }
            None => Flow::Reply(self.guard.reply(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, Seen, Upstream, environment, errors, get};
    use std::time::Duration;
    use weir_gateway::{BuildEnv, Register};
    use weir_store::Store;

    const SMALL: &str = "{minimum_calls: 4, window: 10s, open_for: 30s, probes: 2}";

    fn rig(config: &str, status: u16) -> Rig {
        Rig::new(&[("circuit-breaker", config)]).serving("orders").upstream_status(status)
    }

    async fn runs(rig: &Rig, count: usize) -> Vec<u16> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(rig.run(get("/")).await.status());
        }
        all
    }

    fn state(rig: &Rig) -> String {
        let text = rig.environment.metrics.text(&rig.environment);
        text.lines().find_map(|l| l.strip_prefix("weir_circuit_state{circuit=\"service:orders\"} ")).unwrap().to_owned()
    }

    fn refused(seen: &Seen) -> bool {
        seen.status() == 503 && !seen.forwarded()
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_at_least_so_many_failures_open_it() {
        let rig = rig(SMALL, 200);
        assert_eq!(runs(&rig, 2).await, [200, 200]);
        let rig = rig.upstream_status(500);
        assert_eq!(runs(&rig, 2).await, [500, 500], "the fourth call opens it");
        assert_eq!(state(&rig), "2");
        let seen = rig.run(get("/")).await;
        assert!(refused(&seen));
        assert_eq!((seen.header("retry-after"), seen.body.as_str()), (Some("30"), r#"{"message":"The service is failing, try again later"}"#));
        assert_eq!((rig.calls(), rig.outcome("circuit-breaker", "refused")), (4, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn too_few_calls_or_failures_do_not() {
        let failing = rig(SMALL, 500);
        runs(&failing, 3).await;
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(runs(&failing, 3).await, [500; 3], "the window has gone on");
        let mixed = rig("{minimum_calls: 4, failure_rate: 60}", 200);
        runs(&mixed, 2).await;
        let mixed = mixed.upstream_status(502);
        assert_eq!(runs(&mixed, 2).await, [502, 502]);
        assert_eq!(state(&mixed), "0");
        let fine = rig(SMALL, 404);
        assert_eq!(runs(&fine, 20).await, [404; 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_while_probes_decide() {
        for (later, calls, closed) in [(200, 6, true), (500, 5, false)] {
            let rig = rig(SMALL, 500);
            runs(&rig, 4).await;
            tokio::time::advance(Duration::from_secs(29)).await;
            let seen = rig.run(get("/")).await;
            assert_eq!((refused(&seen), seen.header("retry-after")), (true, Some("1")));
            tokio::time::advance(Duration::from_secs(2)).await;
            let rig = rig.upstream_status(later);
            runs(&rig, 2).await;
            assert_eq!((rig.calls(), state(&rig).as_str()), (calls, if closed { "0" } else { "2" }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_probes_at_a_time_and_one_that_left_gives_its_place_back() {
        let mut rig = rig("{minimum_calls: 1, probes: 1}", 500);
        runs(&rig, 1).await;
        tokio::time::advance(Duration::from_secs(31)).await;
        rig.upstream = Upstream::Hangs;
        {
            let probe = rig.run(get("/"));
            tokio::pin!(probe);
            tokio::select! {
                biased;
                _ = &mut probe => panic!("it hangs"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(state(&rig), "1");
            assert!(refused(&rig.run(get("/")).await));
        }
        rig.upstream = Upstream::Answers;
        let rig = rig.upstream_status(200);
        assert_eq!(runs(&rig, 2).await, [200, 200]);
        assert_eq!(state(&rig), "0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fallback_instead_of_the_error() {
        let rig = rig("{minimum_calls: 1, fallback: {status: 200, headers: {Content-Type: application/json}, body: '[]'}}", 500);
        runs(&rig, 1).await;
        let seen = rig.run(get("/")).await;
        assert_eq!((seen.status(), seen.body.as_str(), seen.header("content-type"), seen.header("retry-after")), (200, "[]", Some("application/json"), Some("30")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_outlives_a_configuration_and_other_circuits_are_their_own() {
        let (environment, register) = (environment(Store::memory()), crate::register());
        let make = |name: &str| Rig::with(environment.clone(), &register, &[("circuit-breaker", "minimum_calls: 1")]).serving(name).upstream_status(500);
        runs(&make("orders"), 1).await;
        assert!(refused(&make("orders").run(get("/")).await));
        assert!(!refused(&make("deals").run(get("/")).await));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_of_plugins_do_not_count() {
        let rig = Rig::new(&[("circuit-breaker", "{minimum_calls: 1, statuses: [401]}"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]).serving("orders");
        assert_eq!(runs(&rig, 3).await, [401; 3]);
        assert_eq!(rig.outcome("circuit-breaker", "refused"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_open_it_too() {
        let rig = rig("{minimum_calls: 4, slow_call: 0s, slow_rate: 100}", 200);
        assert_eq!(runs(&rig, 5).await, [200, 200, 200, 200, 503], "nothing is faster than no time");
        let unhurried = super::tests::rig("{minimum_calls: 1, slow_call: 1h}", 200);
        assert_eq!(runs(&unhurried, 5).await, [200; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_service_may_answer_meanwhile() {
        let rig = rig("{minimum_calls: 1, fallback: {service: spare}}", 500);
        runs(&rig, 1).await;
        let rig = rig.upstream_status(200);
        let seen = rig.run(get("/")).await;
        assert_eq!((seen.status(), seen.cx.service.as_ref().map(|s| s.name.as_str())), (200, Some("spare")));
        assert_eq!((state(&rig).as_str(), rig.outcome("circuit-breaker", "refused")), ("2", 1));
    }

    #[test]
    fn a_fallback_that_is_not_there_is_a_mistake() {
        let environment = environment(Store::memory());
        let services = std::collections::HashMap::new();
        let env = BuildEnv { environment: &environment, scope: "global".into(), services: &services, consumers: &Default::default() };
        let config = crate::testing::entry("circuit-breaker", "{fallback: {service: spear}}");
        let found = crate::register().build(&config, &env).err().unwrap();
        assert!(found[0].to_string().contains("no service `spear`"), "{found:?}");
    }

    #[test]
    fn mistakes() {
        for (config, message) in [
            ("failure_rate: 0", "failure_rate"),
            ("failure_rate: 101", "failure_rate"),
            ("window: 0", "a time above zero"),
            ("per: host", "host"),
            ("fallback: {status: 99}", "status"),
            ("fallback: {service: x, body: y}", "beside `service`"),
            ("per: endpoints", "endpoint"),
            ("fallback: {headers: {'a b': x}}", "not a header name"),
        ] {
            let found = errors("circuit-breaker", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }
}
