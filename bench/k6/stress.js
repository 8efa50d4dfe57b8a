// More and more: 100 to 2,000 requests a second and back. Latency may grow; nothing may fail, and it must be over when the load is.
import { api, one, page, NOTHING_FAILS, PAGES } from './shop.js';

export const options = {
  scenarios: {
    rising: {
      executor: 'ramping-arrival-rate',
      startRate: 100,
      timeUnit: '1s',
      preAllocatedVUs: 200,
      maxVUs: 600,
      stages: [
        { target: 500, duration: '5s' },
        { target: 2000, duration: '10s' },
        { target: 2000, duration: '5s' },
        { target: 100, duration: '5s' },
      ],
    },
    after: { executor: 'constant-arrival-rate', rate: 50, timeUnit: '1s', duration: '5s', startTime: '28s', preAllocatedVUs: 20, exec: 'after' },
  },
  thresholds: { ...NOTHING_FAILS, http_req_duration: ['p(95)<1500'], 'http_req_duration{scenario:after}': ['p(95)<150'] },
};

export default function () {
  if (Math.random() < 0.8) page(one(PAGES));
  else api('GET', one(['/api/home', '/api/products', '/api/deals']), null);
}

export function after() {
  page(one(PAGES));
}
