// What the scenarios share: the doors of the demo, its paths, and requests that check their answers.
import http from 'k6/http';
import { check, fail } from 'k6';
import { Rate } from 'k6/metrics';

export const EDGE = __ENV.EDGE || 'http://127.0.0.1:9000';
export const GATEWAY = __ENV.GATEWAY || 'http://127.0.0.1:8000';
const STUBS = { storefront: 3000, bff: 3001, auth: 4000, members: 5000, products: 5001, deals: 5002, orders: 5003 };

export const SLUGS = ['shoes', 'hats', 'bags', 'coats', 'socks'];
export const PAGES = ['/', '/categories', ...SLUGS.map((slug) => `/categories/${slug}`)];

// Share of pages that came from the cache, the stale ones included.
export const hits = new Rate('cache_hits');

export function one(list) {
  return list[Math.floor(Math.random() * list.length)];
}

// A page at the edge, as a visitor asks for it.
export function page(path, tags = { kind: 'page' }) {
  const answer = http.get(EDGE + path, { tags });
  check(answer, { 'page: 200': (a) => a.status === 200, 'page: HTML to the end': (a) => a.body && a.body.trimEnd().endsWith('</html>') });
  hits.add(/^(HIT|STALE|REFRESH)/.test(answer.headers['X-Cache-Status'] || ''));
  return answer;
}

// An API call by the gateway that must succeed with one of these statuses.
export function api(method, path, body, headers = {}, statuses = [200]) {
  const params = { headers, tags: { kind: 'api' }, responseCallback: http.expectedStatuses(...statuses) };
  if (body !== null) params.headers = { 'Content-Type': 'application/json', ...headers };
  const answer = http.request(method, GATEWAY + path, body === null ? null : JSON.stringify(body), params);
  check(answer, { 'api: an expected status': (a) => statuses.includes(a.status) });
  return answer;
}

// A new account's access token.
export function account(name) {
  const answer = api('POST', '/api/auth/register', { username: name, password: 'correct-horse' }, {}, [201]);
  return answer.json('access_token') || fail(`no account for ${name}: ${answer.status} ${answer.body}`);
}

export function bearer(token) {
  return { Authorization: `Bearer ${token}` };
}

// A name that no other user, round or run has.
export function unique(prefix) {
  return `${prefix}-${Date.now().toString(36)}-${Math.floor(Math.random() * 1e9).toString(36)}`;
}

// What a stub service says about itself, or is told: these calls do not go through Weir and do not count as the load.
export function stub(service, method, path, body = null) {
  const params = { tags: { kind: 'stub' }, headers: body === null ? {} : { 'Content-Type': 'application/json' } };
  const answer = http.request(method, `http://127.0.0.1:${STUBS[service]}/_stub/${path}`, body === null ? null : JSON.stringify(body), params);
  if (answer.status >= 300) fail(`${service}: /_stub/${path}: ${answer.status} ${answer.body}`);
  return answer;
}

// Thresholds that hold in every scenario: nothing that Weir let fail, no check that failed.
export const NOTHING_FAILS = { checks: ['rate==1'], 'http_req_failed{kind:page}': ['rate==0'], 'http_req_failed{kind:api}': ['rate==0'] };
