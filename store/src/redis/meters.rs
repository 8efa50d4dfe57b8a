//! Counts with limits, in one script for all that one request is charged on.

use super::scripts::lua;
use crate::limits::{Back, Cell, How, Method, Reading, Span};
use crate::{COUNTER_MAX, Charge, Charged, StoreError, StoreResult};

lua! {
    /// KEYS counts. ARGV how (all, any, some), then for each: method (f, s, b), seconds of the span or `month` or `year`, limit, burst, cost, the
    /// most, and what comes back: its place and how much. The answer is a list of lists of numbers: first whether all was granted and the time, then for each what was granted and the
    /// count as it is now, from which the caller reads the rest. A count is a packed list: `at` and `used` as in `limits::Cell`, and for
    /// sliding windows the slots.
    CHARGE = r"
local time = redis.call('TIME')
local real, floor = time[1] * 1000000 + time[2], math.floor
local DAY, FAR, RING = 86400000000, 3600000000, 17

local function year_of(year)
  local past = year - 1
  return (past * 365 + floor(past / 4) - floor(past / 100) + floor(past / 400) - 719162) * DAY
end

local function month_of(now)
  local day = floor(now / DAY)
  local shifted = day + 719468
  local era = floor(shifted / 146097)
  local in_era = shifted - era * 146097
  local year = floor((in_era - floor(in_era / 1460) + floor(in_era / 36524) - floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * in_year + 2) / 153)
  local in_month = in_year - floor((153 * month + 2) / 5)
  return (day - in_month) * DAY, year + era * 400 + (month >= 10 and 1 or 0)
end

local function window(span, now)
  if span == 'month' then
    local start = month_of(now)
    return start, (month_of(start + 31 * DAY))
  elseif span == 'year' then
    local _, year = month_of(now)
    return year_of(year), year_of(year + 1)
  end
  local length = span * 1000000
  local start = now - now % length
  return start, start + length
end

local function length_of(span)
  if span == 'month' then return 30 * DAY elseif span == 'year' then return 365 * DAY end
  return span * 1000000
end

local function held(noted, now)
  if noted > now and noted - now <= FAR then return noted end
  return now
end

local function fixed(m)
  local start, stop = window(m.span, held(m.cell[1], real))
  if m.cell[1] ~= start then m.cell = { start, 0 } end
  m.room, m.stop = m.limit - m.cell[2], stop
end

local function sliding(m)
  local length = floor(length_of(m.span) / 16)
  local cell = m.cell
  local newest = floor(held(cell[1] * length, real) / length)
  if newest < cell[1] or newest - cell[1] >= RING or cell[2] == 0 then
    cell = { newest, 0 }
    for i = 3, RING + 2 do cell[i] = 0 end
  end
  for gone = cell[1] + 1, newest do
    local slot = 3 + gone % RING
    cell[2], cell[slot] = cell[2] - cell[slot], 0
  end
  cell[1] = newest
  m.cell, m.room, m.stop, m.slot = cell, m.limit - cell[2], (newest + RING) * length, 3 + newest % RING
end

local function give_back(m, place, amount)
  local cell, slot = m.cell, 2
  if m.slot then
    if place > cell[1] or cell[1] - place >= RING then return end
    slot = 3 + place % RING
  elseif place ~= cell[1] then
    return
  end
  amount = math.min(amount, cell[slot])
  if amount == 0 then return end
  cell[slot] = cell[slot] - amount
  if slot ~= 2 then cell[2] = cell[2] - amount end
  if m.period then
    if cell[2] <= m.drained then cell[1], cell[2], m.drained = m.now, 0, 0 end
    m.room = m.burst - (cell[2] - m.drained)
  else
    m.room = m.limit - cell[2]
  end
  m.changed = true
end

local function bucket(m)
  local period = length_of(m.span)
  local now = held(m.cell[1], real)
  local at, used = math.min(m.cell[1], now), m.cell[2]
  local whole = floor((now - at) / period)
  at, used = at + whole * period, math.max(0, used - whole * m.limit)
  local drained = floor((now - at) * m.limit / period)
  if used <= drained then at, used, drained = now, 0, 0 end
  m.cell, m.room, m.period, m.drained, m.now = { at, used }, m.burst - (used - drained), period, drained, now
end

local meters, all = {}, true
for i, key in ipairs(KEYS) do
  local a = (i - 1) * 8 + 2
  local m = { span = ARGV[a + 1], limit = tonumber(ARGV[a + 2]), burst = tonumber(ARGV[a + 3]), cost = tonumber(ARGV[a + 4]), most = tonumber(ARGV[a + 5]) }
  local raw = redis.call('GET', key)
  m.cell = raw and cmsgpack.unpack(raw) or { 0, 0 }
  if ARGV[a] == 'f' then fixed(m) elseif ARGV[a] == 's' then sliding(m) else bucket(m) end
  if ARGV[a + 7] ~= '0' then give_back(m, tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7])) end
  m.room = math.max(0, m.room)
  if m.cost > 0 and m.cost > m.room then all = false end
  meters[i] = m
end
local answer, granted_all = { { 0, real } }, 1
for i, m in ipairs(meters) do
  local granted = m.cost
  if ARGV[1] == 'all' and not all then
    granted = 0
  elseif ARGV[1] == 'some' then
    granted = m.room < m.cost and 0 or math.min(math.max(m.most, m.cost), m.room)
  end
  if granted < m.cost then granted_all = 0 end
  local cell = m.cell
  granted = math.min(granted, 9007199254740992 - cell[2])
  if granted > 0 or m.changed then
    cell[2] = cell[2] + granted
    if m.slot then cell[m.slot] = cell[m.slot] + granted end
    if m.period then m.stop = cell[1] + cell[2] * m.period / m.limit end
    local life = math.min(math.max(1, math.ceil((m.stop - real) / 1000)), 3.15e11)
    redis.call('SET', KEYS[i], cmsgpack.pack(cell), 'PX', string.format('%.0f', life))
  end
  answer[i + 1] = { granted, unpack(cell) }
end
answer[1][1] = granted_all
return answer";
}

/// What the script is told.
pub(super) fn arguments(charges: &[Charge], how: How) -> Vec<String> {
    let mut args = Vec::with_capacity(1 + charges.len() * 8);
    args.push(match how { How::AllOrNone => "all", How::Anyway => "any", How::UpTo => "some" }.to_owned());
    for charge in charges {
        let rule = &charge.rule;
        let (method, burst) = match rule.method {
            Method::Fixed => ("f", 0),
            Method::Sliding => ("s", 0),
            Method::Bucket { burst } => ("b", burst),
        };
        args.push(method.to_owned());
        args.push(match rule.span {
            Span::Seconds(_) => rule.span.seconds().to_string(),
            Span::Month => "month".to_owned(),
            Span::Year => "year".to_owned(),
        });
        // Numbers end where Lua's do, so a cost over that can only be refused.
        let back = if how == How::UpTo { charge.back } else { Back::default() };
        for number in [rule.limit.clamp(1, COUNTER_MAX), burst.min(COUNTER_MAX), charge.cost.min(COUNTER_MAX + 1), charge.most.min(COUNTER_MAX), back.at, back.amount.min(COUNTER_MAX)] {
            args.push(number.to_string());
        }
    }
    args
}

/// What the script says.
pub(super) fn charged(charges: &[Charge], answer: &[Vec<u64>]) -> StoreResult<Charged> {
    let read = || {
        let ([allowed, now], counts) = answer.split_first().and_then(|(first, counts)| Some((first.first_chunk::<2>()?, counts)))?;
        let readings: Option<Vec<Reading>> = charges.iter().zip(counts).map(|(charge, count)| reading(charge, *now, count)).collect();
        readings.filter(|r| r.len() == charges.len()).map(|readings| Charged { allowed: *allowed == 1, readings })
    };
    read().ok_or_else(|| StoreError::Corrupt("a charge was answered in another shape".into()))
}

fn reading(charge: &Charge, now: u64, count: &[u64]) -> Option<Reading> {
    let (granted, rest) = count.split_first()?;
    let (at, rest) = rest.split_first()?;
    let (used, slots) = rest.split_first()?;
    let slots = match charge.rule.method {
        Method::Sliding => Some(Box::new(slots.try_into().ok()?)),
        _ => None,
    };
    let mut cell = Cell { at: *at, used: *used, slots };
    Some(cell.reading(&charge.rule, now, charge.cost, *granted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rule;
    use crate::testing::RedisServer;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use std::collections::HashMap;

    /// The script with a clock of the test's, in one step of many commands each.
    struct Scripted {
        script: redis::Script,
        conn: redis::Connection,
    }

    impl Scripted {
        fn charge(&mut self, now: u64, keys: &[String], charges: &[Charge], how: How) -> Charged {
            let mut call = self.script.prepare_invoke();
            keys.iter().for_each(|key| {
                call.key(key);
            });
            arguments(charges, how).iter().for_each(|arg| {
                call.arg(arg);
            });
            call.arg(now / 1_000_000).arg(now % 1_000_000);
            let answer: Vec<Vec<u64>> = call.invoke(&mut self.conn).unwrap();
            charged(charges, &answer).unwrap()
        }
    }

    fn rules() -> impl Strategy<Value = Rule> {
        let span = prop_oneof![Just(Span::Seconds(1)), Just(Span::Seconds(7)), Just(Span::MINUTE), Just(Span::HOUR), Just(Span::DAY), Just(Span::Month), Just(Span::Year)];
        (1u64..2000, span, 0usize..3, 1u64..40).prop_map(|(limit, span, which, burst)| Rule { limit, span, method: [Method::Fixed, Method::Sliding, Method::Bucket { burst }][which] })
    }

    /// The script against the same arithmetic in Rust, on a clock that goes on by anything from nothing to years, and now and then a little back.
    #[test]
    fn the_script_counts_as_the_cells_do() {
        let server = RedisServer::start();
        // Nor must the server's own clock end a count while the test's stands still.
        let source = CHARGE.source.replace("redis.call('TIME')", "{ ARGV[#ARGV - 1], ARGV[#ARGV] }").replace("string.format('%.0f', life)", "600000");
        assert!(source.contains("#ARGV") && source.contains("600000"));
        let conn = redis::Client::open(server.url()).and_then(|c| c.get_connection()).unwrap();
        let scripted = std::cell::RefCell::new(Scripted { script: redis::Script::new(&source), conn });
        let step = prop_oneof![Just(0i64), -500_000i64..2_000_000, Just(1_000_000i64), 0i64..100_000_000, 0i64..40_000_000_000_000];
        let calls = prop::collection::vec((step, 0u64..5, 0u64..9, 0usize..3, 0u64..6), 1..40);
        let mut round = 0;
        let mut runner = TestRunner::new(Config::with_cases(60));
        let round = std::cell::RefCell::new(&mut round);
        runner
            .run(&(prop::collection::vec(rules(), 1..4), calls), |(rules, calls)| {
                **round.borrow_mut() += 1;
                let keys: Vec<String> = (0..rules.len()).map(|i| format!("{}:{i}", **round.borrow())).collect();
                let mut cells: HashMap<usize, Cell> = HashMap::new();
                let mut now: u64 = 1_700_000_000_000_000;
                let mut granted_at = vec![0; rules.len()];
                for (step, cost, most, how, amount) in calls {
                    now = now.saturating_add_signed(step);
                    let how = [How::AllOrNone, How::Anyway, How::UpTo][how];
                    let charges: Vec<Charge> = rules.iter().zip(&granted_at).map(|(rule, at)| Charge { most, back: Back { at: *at, amount }, ..Charge::new(String::new(), *rule, cost) }).collect();
                    let answer = scripted.borrow_mut().charge(now, &keys, &charges, how);
                    let mut expected = crate::limits::Outcome { allowed: true, ..Default::default() };
                    let rooms: Vec<(Cell, bool, u64)> = rules
                        .iter()
                        .enumerate()
                        .map(|(i, rule)| {
                            let mut cell = cells.get(&i).cloned().unwrap_or_default();
                            let then = cell.advance(rule, now);
                            let before = cell.clone();
                            if how == How::UpTo {
                                cell.give_back(rule, then, charges[i].back);
                            }
                            let room = cell.room(rule, then);
                            (cell.clone(), cell != before, room)
                        })
                        .collect();
                    let all = rooms.iter().all(|(_, _, room)| cost <= *room || cost == 0);
                    for (i, (rule, (mut cell, changed, room))) in rules.iter().zip(rooms).enumerate() {
                        let granted = match how {
                            How::AllOrNone => if all { cost } else { 0 },
                            How::Anyway => cost,
                            How::UpTo if room < cost => 0,
                            How::UpTo => most.max(cost).min(room),
                        };
                        expected.allowed &= granted >= cost;
                        let charged = cell.charge(rule, granted);
                        expected.readings.push(cell.reading(rule, now, cost, charged));
                        // What is only asked about is not written.
                        if charged > 0 || changed {
                            cells.insert(i, cell);
                        }
                    }
                    granted_at = answer.readings.iter().map(|r| r.at).collect();
                    prop_assert_eq!((answer.allowed, &answer.readings[..]), (expected.allowed, &expected.readings[..]), "{:?} {} {:?}", rules, now, how);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn an_answer_in_another_shape_is_an_error() {
        let rule = Rule { limit: 1, span: Span::MINUTE, method: Method::Sliding };
        let charges = [Charge::new("k".into(), rule, 1)];
        for answer in [vec![], vec![vec![1]], vec![vec![1, 2]], vec![vec![1, 2], vec![]], vec![vec![1, 2], vec![1, 2, 3]]] {
            assert!(charged(&charges, &answer).is_err(), "{answer:?}");
        }
    }
}
