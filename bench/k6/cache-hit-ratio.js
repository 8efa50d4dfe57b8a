// Visitors with tracking parameters and cookies of all kinds: they must find one another's pages.
import http from 'k6/http';
import { one, page, stub, EDGE, NOTHING_FAILS, PAGES } from './shop.js';

export const options = { vus: 30, duration: '20s', thresholds: { ...NOTHING_FAILS, cache_hits: ['rate>0.97'], 'http_req_duration{kind:page}': ['p(95)<200'] } };

export function setup() {
  for (const path of PAGES) http.get(EDGE + path, { tags: { kind: 'warm' } });
}

const NOISE = ['utm_source=mail', 'utm_campaign=spring&utm_medium=cpc', 'gclid=abc123', 'fbclid=xyz', 'page=1&utm_term=red', 'unknown=1'];

export default function () {
  http.cookieJar().set(EDGE, 'consent', `v${Math.floor(Math.random() * 1e6)}`);
  const path = one(PAGES.slice(1));
  // The most asked for is asked for most: half of all requests are for the home page.
  page(Math.random() < 0.5 ? `/?${one(NOISE.slice(0, 4))}` : `${path}?${one(NOISE)}`);
}
