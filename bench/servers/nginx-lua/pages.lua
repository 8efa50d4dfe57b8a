-- Pages from Redis over pooled connections: one GET a request; a page that is not there is fetched and kept.
local PORT = tonumber(os.getenv("REDIS_PORT"))
local _M = {}

local function command(redis, ...)
    local parts = { ... }
    local out = { "*" .. #parts .. "\r\n" }
    for _, part in ipairs(parts) do out[#out + 1] = "$" .. #part .. "\r\n" .. part .. "\r\n" end
    redis:send(out)
    return redis:receive()
end

local function reply(body, status)
    ngx.header["Content-Type"] = "text/html; charset=utf-8"
    ngx.header["Content-Length"] = #body
    ngx.header["X-Cache-Status"] = status
    ngx.print(body)
end

function _M.serve()
    local redis = ngx.socket.tcp()
    redis:settimeouts(1000, 1000, 1000)
    if not redis:connect("127.0.0.1", PORT, { pool_size = 128 }) then return ngx.exit(502) end
    local key = "page:" .. ngx.var.uri
    local line = command(redis, "GET", key)
    local length = line and tonumber(line:sub(2))
    if not length then return ngx.exit(502) end
    if length >= 0 then
        local body = redis:receive(length)
        if not body or not redis:receive(2) then return ngx.exit(502) end
        redis:setkeepalive(3600000, 128)
        return reply(body, "HIT")
    end
    local answer = ngx.location.capture("/fill" .. ngx.var.uri)
    if answer.status ~= 200 then return ngx.exit(502) end
    command(redis, "SET", key, answer.body)
    redis:setkeepalive(3600000, 128)
    reply(answer.body, "MISS")
end

return _M
