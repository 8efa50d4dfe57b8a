// The deals service dies for ten seconds: its breaker opens, spares it and closes again; the rest of the shop does not notice.
import { check, sleep } from 'k6';
import { Counter } from 'k6/metrics';
import { api, one, page, stub, NOTHING_FAILS, PAGES } from './shop.js';

const spared = new Counter('answered_by_the_breaker');

export const options = {
  scenarios: {
    shop: { executor: 'constant-arrival-rate', rate: 100, timeUnit: '1s', duration: '32s', preAllocatedVUs: 50, maxVUs: 200, exec: 'shop' },
    deals: { executor: 'constant-arrival-rate', rate: 100, timeUnit: '1s', duration: '32s', preAllocatedVUs: 50, maxVUs: 200, exec: 'deals' },
    fault: { executor: 'per-vu-iterations', vus: 1, iterations: 1, exec: 'fault', maxDuration: '60s' },
  },
  thresholds: { ...NOTHING_FAILS, answered_by_the_breaker: ['count>200'], 'http_req_duration{scenario:shop}': ['p(95)<250'] },
};

export function shop() {
  if (Math.random() < 0.5) page(one(PAGES));
  else api('GET', one(['/api/home', '/api/products']), null);
}

export function deals() {
  const answer = api('GET', '/api/deals', null, {}, [200, 500, 503]);
  if (answer.status === 503 && answer.headers['Retry-After']) spared.add(1);
}

export function fault() {
  sleep(5);
  stub('deals', 'POST', 'faults', { path_prefix: '/api/deals', status: 500 });
  const before = stub('deals', 'GET', 'stats').json('hits');
  sleep(10);
  const reached = stub('deals', 'GET', 'stats').json('hits') - before;
  // Of about a thousand requests: those before it opened, and the probes since.
  check(reached, { 'the breaker keeps requests from the dead service': (n) => n < 300 });
  stub('deals', 'DELETE', 'faults');
  sleep(10);
  check(api('GET', '/api/deals', null), { 'the breaker closes when the service is back': (a) => a.status === 200 });
}

export function teardown() {
  stub('deals', 'DELETE', 'faults');
}
