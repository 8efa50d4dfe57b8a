// From the first page to an order, sent twice as nervous people and bad networks do: every order is made exactly once.
import { check, sleep } from 'k6';
import { Counter } from 'k6/metrics';
import { api, account, bearer, one, page, stub, unique, NOTHING_FAILS, SLUGS } from './shop.js';

const wanted = new Counter('orders_wanted');

export const options = { scenarios: { buyers: { executor: 'per-vu-iterations', vus: 30, iterations: 8, maxDuration: '60s' } }, thresholds: { ...NOTHING_FAILS, 'http_req_duration{kind:api}': ['p(95)<500'], orders_wanted: ['count==240'] } };

export function setup() {
  return { before: stub('orders', 'GET', 'ledger').json('count') };
}

export default function () {
  page('/');
  page(`/categories/${one(SLUGS)}`);
  const token = account(unique('buyer'));
  const id = 1 + Math.floor(Math.random() * 40);
  api('GET', `/api/products/${id}`, null);
  const headers = { ...bearer(token), 'Idempotency-Key': unique('order') };
  const order = { items: [{ product_id: id, quantity: 2 }] };
  const first = api('POST', '/api/orders', order, headers, [201]);
  const second = api('POST', '/api/orders', order, headers, [201]);
  check(second, { 'the second answer is the first': (a) => a.body === first.body });
  check(api('GET', `/api/orders/${first.json('id')}`, null), { 'the order is there': (a) => a.json('items.0.product_id') === id });
  wanted.add(1);
  sleep(0.1);
}

export function teardown(data) {
  const made = stub('orders', 'GET', 'ledger').json('count') - data.before;
  check(made, { 'as many orders as were wanted': (n) => n === 240 });
}
