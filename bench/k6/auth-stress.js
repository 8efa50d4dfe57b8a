// Logins, good tokens, forged and expired ones, and one caller who asks too often.
import { check } from 'k6';
import { api, account, bearer, unique, NOTHING_FAILS } from './shop.js';

const EXPIRED = 'eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ4IiwiZXhwIjoxNTAwMDAwMDAwfQ.7yM0xkXnKJ0Vd5Y7gqI8oYfXkVJzkq6p3mH1nGJ0o5E';

export const options = {
  scenarios: {
    logins: { executor: 'constant-vus', vus: 10, duration: '20s', exec: 'logins' },
    members: { executor: 'constant-arrival-rate', rate: 400, timeUnit: '1s', duration: '20s', preAllocatedVUs: 50, maxVUs: 200, exec: 'members' },
    forged: { executor: 'constant-arrival-rate', rate: 200, timeUnit: '1s', duration: '20s', preAllocatedVUs: 50, maxVUs: 200, exec: 'forged' },
    greedy: { executor: 'constant-arrival-rate', rate: 150, timeUnit: '1s', duration: '10s', preAllocatedVUs: 20, maxVUs: 100, exec: 'greedy' },
  },
  thresholds: { ...NOTHING_FAILS, 'http_req_duration{scenario:members}': ['p(95)<300'], 'http_req_duration{scenario:forged}': ['p(95)<300'] },
};

// Each member's token is known before the load begins.
export function setup() {
  return { tokens: Array.from({ length: 40 }, () => account(unique('member'))), greedy: account(unique('greedy')) };
}

export function logins() {
  api('POST', '/api/auth/login', { username: 'alice', password: 'wonderland' });
}

// 400 a second by 40 members: each stays below the 50 a second that the route allows.
let turn = Math.floor(Math.random() * 40);
export function members(data) {
  api('GET', '/api/members', null, bearer(data.tokens[turn++ % data.tokens.length]), [200, 429]);
}

export function forged(data) {
  const good = data.tokens[0];
  const bad = [good.slice(0, -8) + 'AAAAAAAA', EXPIRED, 'not.a.token', `eyJhbGciOiJub25lIn0.${good.split('.')[1]}.`][__ITER % 4];
  api('GET', '/api/members', null, bearer(bad), [401]);
}

// 150 a second by one member: at most 50 a second may pass.
export function greedy(data) {
  const answer = api('GET', '/api/members', null, bearer(data.greedy), [200, 429]);
  if (answer.status === 429) check(answer, { 'limited answers say when to come back': (a) => Number(a.headers['Retry-After']) >= 0 });
}
