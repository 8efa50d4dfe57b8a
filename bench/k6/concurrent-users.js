// A hundred to a thousand users at once, each reading for a second between pages.
import { sleep } from 'k6';
import { api, one, page, NOTHING_FAILS, PAGES } from './shop.js';

export const options = {
  scenarios: {
    users: {
      executor: 'ramping-vus',
      startVUs: 100,
      gracefulRampDown: '5s',
      stages: [
        { target: 100, duration: '5s' },
        { target: 500, duration: '8s' },
        { target: 1000, duration: '10s' },
        { target: 1000, duration: '10s' },
      ],
    },
  },
  thresholds: { ...NOTHING_FAILS, 'http_req_duration{kind:page}': ['p(95)<500'], 'http_req_duration{kind:api}': ['p(95)<800'], vus_max: ['value>=1000'] },
};

export default function () {
  page(one(PAGES));
  if (Math.random() < 0.3) api('GET', one(['/api/home', '/api/products', '/api/deals']), null);
  sleep(0.5 + Math.random());
}
