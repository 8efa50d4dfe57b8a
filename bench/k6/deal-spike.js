// A deal opens: 200 visitors have waited and ask in the same second for a page that nobody has asked for before, and stay.
import { check, sleep } from 'k6';
import { api, page, stub, unique, NOTHING_FAILS } from './shop.js';

export const options = {
  scenarios: { opening: { executor: 'per-vu-iterations', vus: 200, iterations: 10, maxDuration: '60s' } },
  thresholds: { ...NOTHING_FAILS, 'http_req_duration{kind:page}': ['p(95)<1000'], 'http_req_duration{kind:api}': ['p(95)<1500'], cache_hits: ['rate>0.85'] },
};

// The page and the moment of the opening, and what the storefront had answered before it.
export function setup() {
  // The part of the query that belongs to the page makes it a new one.
  return { path: `/categories/bags?page=1&sort=${unique('deal')}`, opens: Date.now() + 3000, before: stub('storefront', 'GET', 'stats').json('paths')['/categories/bags'] || 0 };
}

export default function (deal) {
  // Arrivals are spread over the first second, as clocks are.
  sleep(Math.max(0, (deal.opens - Date.now()) / 1000) + (__ITER ? 0.2 : Math.random()));
  page(deal.path);
  api('GET', '/api/deals', null);
}

export function teardown(deal) {
  const fetches = (stub('storefront', 'GET', 'stats').json('paths')['/categories/bags'] || 0) - deal.before;
  check(fetches, { 'the storefront made the page once': (n) => n === 1 });
}
