// Bun as cache and gateway: what an expert would write for one shop. It has no access log and no metrics of its own; none are added.
import { createHmac, timingSafeEqual } from "node:crypto";
import { RedisClient } from "bun";

const origin = `http://127.0.0.1:${process.env.ORIGIN}`;
const secret = process.env.SECRET!;
const limit = 1_000_000;
const pages = new Map<string, Uint8Array>();
const filling = new Map<string, Promise<Uint8Array>>();
const tokens = new Map<string, { sub: string; exp: number }>();
const mostTokens = Number(process.env.TOKEN_CACHE);
const redis = process.env.STORE!.startsWith("redis") ? new RedisClient(process.env.STORE) : null;

let second = 0;
let counts = new Map<string, number>();

const hit = { headers: { "Content-Type": "text/html; charset=utf-8", "X-Cache-Status": "HIT" } };
const miss = { headers: { "Content-Type": "text/html; charset=utf-8", "X-Cache-Status": "MISS" } };

function fill(path: string): Promise<Uint8Array> {
  let begun = filling.get(path);
  if (!begun) {
    begun = fetch(origin + path)
      .then((answer) => answer.bytes())
      .then(async (body) => {
        if (redis) await redis.set("page:" + path, body);
        else pages.set(path, body);
        return body;
      })
      .finally(() => filling.delete(path));
    filling.set(path, begun);
  }
  return begun;
}

async function fromRedis(path: string): Promise<Response> {
  const body = await redis!.getBuffer("page:" + path);
  return body ? new Response(body, hit) : new Response(await fill(path), miss);
}

function verified(token: string, now: number) {
  const parts = token.split(".");
  if (parts.length !== 3) return null;
  try {
    const head = JSON.parse(Buffer.from(parts[0], "base64url").toString());
    if (head.alg !== "HS256" || head.crit) return null;
    const found = Buffer.from(parts[2], "base64url");
    const wanted = createHmac("sha256", secret).update(`${parts[0]}.${parts[1]}`).digest();
    if (found.length !== wanted.length || !timingSafeEqual(found, wanted)) return null;
    const claims = JSON.parse(Buffer.from(parts[1], "base64url").toString());
    return typeof claims.exp === "number" && claims.exp > now && typeof claims.sub === "string" ? claims : null;
  } catch {
    return null;
  }
}

const refused = () => new Response("no valid token\n", { status: 401, headers: { "WWW-Authenticate": 'Bearer realm="api"' } });

async function guarded(request: Request, path: string): Promise<Response> {
  const header = request.headers.get("authorization");
  if (!header?.startsWith("Bearer ")) return refused();
  const token = header.slice(7);
  const now = Math.floor(Date.now() / 1000);
  let claims = tokens.get(token);
  if (!claims || claims.exp <= now) {
    claims = verified(token, now);
    if (!claims) return refused();
    if (tokens.size >= mostTokens) tokens.clear();
    tokens.set(token, claims);
  }
  if (second !== now) {
    second = now;
    counts = new Map();
  }
  const used = (counts.get(claims.sub) ?? 0) + 1;
  counts.set(claims.sub, used);
  if (used > limit) return new Response("too many requests\n", { status: 429 });
  const headers = new Headers(request.headers);
  headers.set("X-User-Id", claims.sub);
  const answer = await fetch(origin + path, { method: request.method, headers, body: request.body });
  answer.headers.set("RateLimit-Limit", String(limit));
  answer.headers.set("RateLimit-Remaining", String(limit - used));
  answer.headers.set("RateLimit-Reset", "1");
  return answer;
}

Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.HTTP),
  idleTimeout: 0,
  fetch(request) {
    const url = request.url;
    const path = url.slice(url.indexOf("/", 8));
    if (path.startsWith("/page") || path.startsWith("/p/")) {
      if (redis) return fromRedis(path);
      const body = pages.get(path);
      return body ? new Response(body, hit) : fill(path).then((made) => new Response(made, miss));
    }
    if (path.startsWith("/token")) return guarded(request, path);
    return fetch(origin + path, { method: request.method, headers: request.headers, body: request.body });
  },
});
