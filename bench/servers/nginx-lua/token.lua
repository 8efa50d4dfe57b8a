-- HS256 bearer tokens, verified once and remembered until they expire, and a limit per user and second.
local ffi = require "ffi"
local cjson = require "cjson.safe"
local lrucache = require "resty.lrucache"
local resty_base64 = require "ngx.base64"
local decode = resty_base64.decode_base64url
local byte, find, sub, floor = string.byte, string.find, string.sub, math.floor

ffi.cdef [[
typedef struct evp_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *md, const void *key, int key_len, const unsigned char *d, size_t n, unsigned char *out, unsigned int *len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]

local SECRET = os.getenv("TOKEN_SECRET")
local LIMIT = 1000000
local seen = lrucache.new(tonumber(os.getenv("TOKEN_CACHE")))
local counts = ngx.shared.limits
local digest, length = ffi.new("unsigned char[64]"), ffi.new("unsigned int[1]")

local _M = {}

local function verify(token)
    local first = find(token, ".", 1, true)
    local second = first and find(token, ".", first + 1, true)
    if not second then return nil end
    local header = cjson.decode(decode(sub(token, 1, first - 1)) or "")
    if type(header) ~= "table" or header.alg ~= "HS256" or header.crit then return nil end
    local signature = decode(sub(token, second + 1))
    if not signature or #signature ~= 32 then return nil end
    local signed = sub(token, 1, second - 1)
    ffi.C.HMAC(ffi.C.EVP_sha256(), SECRET, #SECRET, signed, #signed, digest, length)
    if ffi.C.CRYPTO_memcmp(digest, signature, 32) ~= 0 then return nil end
    local claims = cjson.decode(decode(sub(token, first + 1, second - 1)) or "")
    if type(claims) ~= "table" or type(claims.exp) ~= "number" or type(claims.sub) ~= "string" then return nil end
    return claims
end

local function refuse(status, text)
    ngx.status = status
    ngx.header["WWW-Authenticate"] = status == 401 and 'Bearer realm="api"' or nil
    ngx.say(text)
    return ngx.exit(status)
end

function _M.check()
    local header = ngx.var.http_authorization
    if not header or sub(header, 1, 7) ~= "Bearer " then return refuse(401, "no token") end
    local token = sub(header, 8)
    local now = ngx.time()
    local claims = seen:get(token)
    if not claims then
        claims = verify(token)
        if not claims then return refuse(401, "bad token") end
        seen:set(token, claims, claims.exp - now)
    end
    if claims.exp <= now then return refuse(401, "token expired") end
    local used = counts:incr(claims.sub .. now, 1, 0, 2) or 0
    ngx.header["RateLimit-Limit"] = LIMIT
    ngx.header["RateLimit-Remaining"] = LIMIT - used
    ngx.header["RateLimit-Reset"] = 1
    if used > LIMIT then return refuse(429, "too many requests") end
    ngx.req.set_header("X-User-Id", claims.sub)
end

return _M
