//! The steps that Redis does in one piece. All times are Redis' own clock in milliseconds, so that the instances need not agree on theirs.

use super::link::Conn;
use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value};
use std::sync::LazyLock;

/// A script and its hash.
pub(super) struct Lua {
    source: &'static str,
    script: LazyLock<Script>,
}

macro_rules! lua {
    ($($(#[$doc:meta])* $name:ident = $source:literal;)*) => {
        $($(#[$doc])* pub(super) static $name: Lua = Lua { source: $source, script: LazyLock::new(|| Script::new($source)) };)*
    };
}

impl Lua {
    /// Runs it by its hash; where Redis does not know it (first use, restart, failover), once more with the source. All `keys` must lie in one slot.
    pub(super) async fn run(&self, conn: &mut Conn, keys: &[String], args: &[&[u8]]) -> RedisResult<Value> {
        match self.command("EVALSHA", self.script.get_hash(), keys, args).query_async(conn).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => self.command("EVAL", self.source, keys, args).query_async(conn).await,
            outcome => outcome,
        }
    }

    fn command(&self, verb: &str, body: &str, keys: &[String], args: &[&[u8]]) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(body).arg(keys.len()).arg(keys);
        for arg in args {
            command.arg(*arg);
        }
        command
    }
}

lua! {
    /// KEYS value, mark. ARGV value, ttl, fence, life of the mark. Fences are compared as decimal texts: Lua's numbers end at 2^53.
    PUT_FENCED = r"
local mark, fence = redis.call('GET', KEYS[2]), ARGV[3]
if mark and (#mark > #fence or (#mark == #fence and mark > fence)) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local left = redis.call('PTTL', KEYS[2])
if left > tonumber(ARGV[4]) then
  redis.call('SET', KEYS[2], fence, 'KEEPTTL')
else
  redis.call('SET', KEYS[2], fence, 'PX', ARGV[4])
end
return 1";

    /// KEYS lock, turn. ARGV owner, lease, life of the turn. The fence, or nothing if another holds it. The turn starts at the time in
    /// milliseconds: it rises also past its own loss, be it by age or by a Redis that lost its memory.
    ACQUIRE = r"
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
local time = redis.call('TIME')
local fence = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', KEYS[2], string.format('%.0f', fence), 'PX', ARGV[3])
return fence";

    /// KEYS lock. ARGV owner, lease.
    RENEW = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

    /// KEYS lock. ARGV owner.
    RELEASE = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";

    /// KEYS counters (one may come twice). ARGV cost, limit, ttl of each; none over 2^53. Whether it was allowed (1, 0), then the values.
    TAKE = r"
local values, asked, allowed = {}, {}, 1
for i, key in ipairs(KEYS) do
  if not asked[key] then
    values[key] = tonumber(redis.call('GET', key) or 0)
    asked[key] = values[key]
  end
  asked[key] = asked[key] + tonumber(ARGV[i * 3 - 2])
  if asked[key] > tonumber(ARGV[i * 3 - 1]) then allowed = 0 end
end
if allowed == 1 then
  for i, key in ipairs(KEYS) do
    local cost = ARGV[i * 3 - 2]
    if cost ~= '0' then
      local fresh = values[key] == 0
      values[key] = redis.call('INCRBY', key, cost)
      if fresh then redis.call('PEXPIRE', key, ARGV[i * 3]) end
    end
  end
end
local answer = { allowed }
for i, key in ipairs(KEYS) do answer[i + 1] = values[key] end
return answer";

    /// KEYS counter. ARGV addend, ttl, the most it may become.
    ADD = r"
local value, most = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[3])
if ARGV[1] == '0' then return value end
if value + tonumber(ARGV[1]) > most then
  redis.call('SET', KEYS[1], ARGV[3], 'KEEPTTL')
else
  redis.call('INCRBY', KEYS[1], ARGV[1])
end
if value == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return math.min(value + tonumber(ARGV[1]), most)";

    /// KEYS entry. ARGV owner, fingerprint, lease, ttl of the unknown. An entry is a hash: s state (b begun, a acting, d done), o owner,
    /// f fingerprint, t ttl of the unknown, u end of the acting lease, v value. A begun one ends with its lease, an acting one t later.
    /// The fence is the time in microseconds: a counter of its own would have to outlive every key that was ever used.
    BEGIN = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'f', 'v', 'u')
local time = redis.call('TIME')
if not entry[1] then
  redis.call('HSET', KEYS[1], 's', 'b', 'o', ARGV[1], 'f', ARGV[2], 't', ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return { 'owner', time[1] * 1000000 + time[2] }
end
if entry[1] == 'd' then return { 'done', entry[2], entry[3] } end
if entry[1] == 'a' and time[1] * 1000 + time[2] / 1000 >= tonumber(entry[4]) then return { 'unknown', entry[2] } end
return { 'flight', entry[2] }";

    /// KEYS entry. ARGV owner, step (acting, renew, complete, abandon), lease or ttl, value, channel, message. Whether the owner still had it.
    /// The message is a hint: a user who may not publish must not get an error for a step that was made.
    STEP = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'o', 'u', 't')
if entry[2] ~= ARGV[1] or entry[1] == 'd' then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if entry[1] == 'a' and now >= tonumber(entry[3]) then return 0 end
local step = ARGV[2]
if step == 'acting' or (step == 'renew' and entry[1] == 'a') then
  redis.call('HSET', KEYS[1], 's', 'a', 'u', string.format('%.0f', now + ARGV[3]))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[3] + entry[4]))
elseif step == 'renew' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  if step == 'complete' then
    redis.call('HSET', KEYS[1], 's', 'd', 'v', ARGV[4])
    redis.call('HDEL', KEYS[1], 'u', 't')
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  else
    redis.call('DEL', KEYS[1])
  end
  redis.pcall('PUBLISH', ARGV[5], ARGV[6])
end
return 1";

    /// KEYS entry. Whether someone works on it now.
    IN_FLIGHT = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'u')
if entry[1] == 'b' then return 1 end
if entry[1] ~= 'a' then return 0 end
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 >= tonumber(entry[2]) then return 0 end
return 1";
}
