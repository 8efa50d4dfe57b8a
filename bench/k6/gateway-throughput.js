// As much as fifty clients can ask: k6 shares the machine and is the slower part; the pure figures are bench/compare's.
import { api, NOTHING_FAILS } from './shop.js';

export const options = { vus: 50, duration: '15s', thresholds: { ...NOTHING_FAILS, http_reqs: ['rate>300'], 'http_req_duration{kind:api}': ['p(99)<1000'] } };

export default function () {
  api('GET', '/api/products/7', null);
}
