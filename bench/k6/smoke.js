// One visitor, once around the shop: does every promise of the demo hold?
import { check } from 'k6';
import { api, account, bearer, page, unique, NOTHING_FAILS, PAGES } from './shop.js';

export const options = { vus: 1, iterations: 5, thresholds: { ...NOTHING_FAILS, http_req_duration: ['p(95)<500'] } };

export default function () {
  for (const path of PAGES) page(path);
  for (const path of PAGES) check(page(path), { 'the second time is a hit': (a) => a.headers['X-Cache-Status'] === 'HIT' });
  for (const path of ['/api/home', '/api/categories', '/api/products', '/api/products/3', '/api/deals']) api('GET', path, null);
  api('GET', '/api/members', null, {}, [401]);
  const token = account(unique('smoke'));
  api('GET', '/api/members', null, bearer(token));
  const key = { 'Idempotency-Key': unique('order') };
  const first = api('POST', '/api/orders', { items: [{ product_id: 1 }] }, key, [201]);
  const second = api('POST', '/api/orders', { items: [{ product_id: 1 }] }, key, [201]);
  check(second, { 'an order sent twice is one order': (a) => a.json('id') === first.json('id') });
}
