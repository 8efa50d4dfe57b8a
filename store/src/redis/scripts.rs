//! The steps that Redis does in one piece. All times are Redis' own clock in milliseconds, so that the instances need not agree on theirs.

use super::link::Conn;
use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value};
use std::sync::LazyLock;

/// A script and its hash.
pub(super) struct Lua {
    pub(super) source: &'static str,
    pub(super) script: LazyLock<Script>,
}

macro_rules! lua {
    ($($(#[$doc:meta])* $name:ident = $source:literal;)*) => {
        $($(#[$doc])* pub(super) static $name: $crate::redis::scripts::Lua = $crate::redis::scripts::Lua {
            source: $source,
            script: std::sync::LazyLock::new(|| ::redis::Script::new($source)),
        };)*
    };
}
pub(super) use lua;

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

    /// KEYS value. ARGV its beginning as it should be, and as it shall be.
    PATCH = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if #ARGV[1] > 0 and redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], 0, ARGV[2])
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

    /// KEYS entry, memory. ARGV owner, fingerprint, lease, ttl of the unknown, birth of the memory as the caller knows it (0: it does not),
    /// whether an unknown outcome is free (1). The state, the birth of the memory, and what belongs to the state. An entry is a hash: s state (b begun,
    /// a acting, d done), o owner, f fingerprint, t ttl of the unknown, u end of the acting lease, v value. A begun one ends with its lease, an
    /// acting one t later. The fence is the time in microseconds: a counter of its own would have to outlive every key that was ever used.
    /// The memory is a hash too, which never ends: b its birth in microseconds, l whether someone knew of an earlier one: then this one was born of a loss.
    BEGIN = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'f', 'v', 'u')
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local memory = redis.call('HMGET', KEYS[2], 'b', 'l')
local born, lost, known = tonumber(memory[1]) or now, memory[2], tonumber(ARGV[5])
if not memory[1] then redis.call('HSET', KEYS[2], 'b', string.format('%.0f', now)) end
if known > 0 and known ~= born and not lost then
  redis.call('HSET', KEYS[2], 'l', '1')
  lost = '1'
end
if entry[1] == 'd' then return { 'done', born, entry[2], entry[3] } end
if entry[1] == 'a' and now / 1000 >= tonumber(entry[4]) then
  if ARGV[6] ~= '1' then return { 'unknown', born, entry[2] } end
  redis.call('DEL', KEYS[1])
elseif entry[1] then
  return { 'flight', born, entry[2] }
elseif lost then
  local left = math.ceil((born - now) / 1000 + ARGV[4])
  if left > 0 then return { 'lost', born, left } end
end
redis.call('HSET', KEYS[1], 's', 'b', 'o', ARGV[1], 'f', ARGV[2], 't', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return { 'owner', born, now }";

    /// KEYS entry, memory. ARGV owner, step (acting, renew, complete, abandon), lease or ttl, value, channel, message, fence, fingerprint, ttl of the
    /// unknown. Whether the owner still had it. An entry that is gone although its memory is younger than the claim was lost: its owner makes it
    /// again, as acting, for it may be. The message is a hint: a user who may not publish must not get an error for a step that was made.
    STEP = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'o', 'u', 't')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local step = ARGV[2]
if not entry[1] then
  local born = tonumber(redis.call('HGET', KEYS[2], 'b'))
  if born and born <= tonumber(ARGV[7]) then return 0 end
  if not born then redis.call('HSET', KEYS[2], 'b', string.format('%.0f', time[1] * 1000000 + time[2])) end
  redis.call('HSET', KEYS[2], 'l', '1')
  if step == 'abandon' then return 1 end
  redis.call('HSET', KEYS[1], 's', 'a', 'o', ARGV[1], 'f', ARGV[8], 't', ARGV[9])
  entry = { 'a', ARGV[1], now + 1, ARGV[9] }
end
if entry[2] ~= ARGV[1] or entry[1] == 'd' then return 0 end
if entry[1] == 'a' and now >= tonumber(entry[3]) then return 0 end
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

    /// KEYS names, data, ends of one part of the index. ARGV key, stamp, ttl, the most that is forgotten, then the names. A member of `names` is
    /// name, NUL, key; `data` has for each key stamp, end and names; `ends` has the keys by their ends.
    ENTER = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function drop(key)
  local packed = redis.call('HGET', KEYS[2], key)
  if packed then
    local members = {}
    for i, name in ipairs(cmsgpack.unpack(packed)[3]) do members[i] = name .. '\0' .. key end
    if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
    redis.call('HDEL', KEYS[2], key)
  end
  redis.call('ZREM', KEYS[3], key)
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[4])) do drop(key) end
drop(ARGV[1])
local names, members, stop = {}, {}, now + ARGV[3]
for i = 5, #ARGV do
  names[i - 4] = ARGV[i]
  members[#members + 1] = 0
  members[#members + 1] = ARGV[i] .. '\0' .. ARGV[1]
end
if #members > 0 then redis.call('ZADD', KEYS[1], unpack(members)) end
redis.call('HSET', KEYS[2], ARGV[1], cmsgpack.pack({ ARGV[2], stop, names }))
redis.call('ZADD', KEYS[3], string.format('%.0f', stop), ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then redis.call('PEXPIRE', key, ARGV[3]) end
end
return 1";

    /// KEYS names, data. ARGV first and last member, the most to look at. Whether there may be more, the last member that was looked at, then
    /// for each entry key, stamp and names.
    FIND = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local answer, seen = { #members == tonumber(ARGV[3]) and 1 or 0, members[#members] or '' }, {}
for _, member in ipairs(members) do
  local key = string.sub(member, string.find(member, '\0', 1, true) + 1)
  if not seen[key] then
    seen[key] = true
    local packed = redis.call('HGET', KEYS[2], key)
    local entry = packed and cmsgpack.unpack(packed)
    if entry and entry[2] > now then answer[#answer + 1] = { key, entry[1], unpack(entry[3]) } end
  end
end
return answer";

    /// KEYS names, data, ends. ARGV key and stamp of each. How many there were.
    LEAVE = r"
local count = 0
for i = 1, #ARGV, 2 do
  local key = ARGV[i]
  local packed = redis.call('HGET', KEYS[2], key)
  local entry = packed and cmsgpack.unpack(packed)
  if entry and entry[1] == ARGV[i + 1] then
    local members = {}
    for n, name in ipairs(entry[3]) do members[n] = name .. '\0' .. key end
    if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
    count = count + 1
  end
end
return count";

    /// KEYS entry. Whether someone works on it now.
    IN_FLIGHT = r"
local entry = redis.call('HMGET', KEYS[1], 's', 'u')
if entry[1] == 'b' then return 1 end
if entry[1] ~= 'a' then return 0 end
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 >= tonumber(entry[2]) then return 0 end
return 1";
}
