//! What a chain of 0 to 20 plugins costs a request by itself, and what plugins cost that do nothing, or change a header.
//!
//! `cargo bench -p weir-bench --bench chain`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response, header, request, response};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};
use weir_gateway::{Chain, Chains, Client, Flow, Phases, Plugin, RequestContext, Scheme, chain::Link};

/// Takes part in the steps that most plugins take part in.
struct Step {
    field: Option<HeaderName>,
}

impl Plugin for Step {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::RESPONSE
    }

    fn request(&self, _: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if let Some(field) = &self.field {
            req.headers.insert(field.clone(), HeaderValue::from_static("1"));
        }
        Flow::Continue
    }

    fn response(&self, _: &mut RequestContext, res: &mut response::Parts) {
        if let Some(field) = &self.field {
            res.headers.insert(field.clone(), HeaderValue::from_static("1"));
        }
    }
}

fn chains(plugins: usize, changing: bool) -> Chains {
    let link = |n: usize| Link {
        name: "step",
        priority: n as i32,
        plugin: Arc::new(Step { field: changing.then(|| HeaderName::try_from(format!("x-step-{n}")).expect("a name")) }),
    };
    Chains { base: Arc::new(Chain::new((0..plugins).map(link).collect())), ..Chains::default() }
}

fn context() -> RequestContext {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    RequestContext::new(Client { ip, peer: ip, scheme: Scheme::Http, host: "shop.example.test".into(), port: 80, trusted: false, sni: None })
}

fn run(c: &mut Criterion) {
    c.bench_function("a request's context", |b| b.iter(|| black_box(context())));
    for (group, changing) in [("chain of plugins that do nothing", false), ("chain of plugins that set a header each way", true)] {
        let mut bench = c.benchmark_group(group);
        for plugins in [0, 1, 2, 5, 10, 20] {
            let chains = chains(plugins, changing);
            let (mut cx, mut req) = (context(), Request::get("/api/products").header(header::HOST, "shop.example.test").body(()).expect("a request").into_parts().0);
            let mut res = Response::new(()).into_parts().0;
            bench.bench_function(BenchmarkId::from_parameter(plugins), |b| {
                b.iter(|| {
                    let begun = chains.begin(&cx);
                    let (chain, reply) = chains.request(&mut cx, &mut req, begun).now_or_never().expect("no plugin here waits");
                    assert!(reply.is_none());
                    chain.response(&mut cx, &mut res);
                    black_box(&res);
                });
            });
        }
        bench.finish();
    }
}

criterion_group!(benches, run);
criterion_main!(benches);
