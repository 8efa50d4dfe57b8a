-- For wrk: asks for PREFIX0 … PREFIX(KEYS-1) in an order that leaps about and reaches every key. Without PREFIX: /p/.
local keys, prefix = tonumber(os.getenv("KEYS")), os.getenv("PREFIX") or "/p/"
local made, at = {}, 0
local stride = 7919
while keys % stride == 0 do stride = stride + 2 end

function init(args)
    for i = 0, keys - 1 do made[i] = wrk.format("GET", prefix .. i) end
end

function request()
    at = (at + stride) % keys
    return made[at]
end

dofile(os.getenv("WRK_SCRIPTS") .. "/report.lua")
