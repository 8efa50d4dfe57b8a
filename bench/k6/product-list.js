// Fifty visitors leaf through categories and products.
import { sleep } from 'k6';
import { api, one, page, NOTHING_FAILS, SLUGS } from './shop.js';

export const options = {
  vus: 50,
  duration: '20s',
  thresholds: { ...NOTHING_FAILS, 'http_req_duration{kind:page}': ['p(95)<200'], 'http_req_duration{kind:api}': ['p(95)<300'], cache_hits: ['rate>0.95'] },
};

export default function () {
  const slug = one(SLUGS);
  page(`/categories/${slug}`);
  page(`/categories/${slug}?page=2&utm_source=mail-${Math.random()}`);
  const list = api('GET', '/api/products', null).json('items') || [];
  for (let i = 0; i < 3 && list.length; i++) api('GET', `/api/products/${one(list).id}`, null);
  sleep(0.2);
}
