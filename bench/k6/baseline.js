// An ordinary day: 100 requests a second, two thirds pages and one third API calls, whether or not earlier ones were answered.
import { api, one, page, NOTHING_FAILS, PAGES } from './shop.js';

export const options = {
  scenarios: { day: { executor: 'constant-arrival-rate', rate: 100, timeUnit: '1s', duration: '20s', preAllocatedVUs: 50, maxVUs: 200 } },
  thresholds: { ...NOTHING_FAILS, 'http_req_duration{kind:page}': ['p(95)<100', 'p(99)<250'], 'http_req_duration{kind:api}': ['p(95)<150', 'p(99)<400'], dropped_iterations: ['count<20'] },
};

export default function () {
  if (Math.random() < 0.66) page(one(PAGES));
  else api('GET', one(['/api/home', '/api/categories', '/api/products', '/api/deals', '/api/products/7']), null);
}
