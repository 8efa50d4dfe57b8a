-- Pages from Redis over pooled connections: one GET a request, the reply read as it is framed.
local PORT = tonumber(os.getenv("REDIS_PORT"))
local _M = {}

function _M.serve()
    local redis = ngx.socket.tcp()
    redis:settimeouts(1000, 1000, 1000)
    if not redis:connect("127.0.0.1", PORT, { pool_size = 128 }) then return ngx.exit(502) end
    local key = "page:" .. ngx.var.uri
    redis:send("*2\r\n$3\r\nGET\r\n$" .. #key .. "\r\n" .. key .. "\r\n")
    local line = redis:receive()
    local length = line and tonumber(line:sub(2))
    if not length then return ngx.exit(502) end
    if length < 0 then
        redis:setkeepalive(3600000, 128)
        return ngx.exit(404)
    end
    local body = redis:receive(length + 2)
    if not body then return ngx.exit(502) end
    redis:setkeepalive(3600000, 128)
    ngx.header["Content-Type"] = "text/html; charset=utf-8"
    ngx.header["Content-Length"] = length
    ngx.header["X-Cache-Status"] = "HIT"
    ngx.print(body:sub(1, length))
end

return _M
