-- For wrk: sends the tokens of the file TOKENS, one a line, in turn.
local made, at = {}, 0

function init(args)
    for token in io.lines(os.getenv("TOKENS")) do
        made[#made + 1] = wrk.format("GET", wrk.path, { ["Authorization"] = "Bearer " .. token })
    end
end

function request()
    at = at % #made + 1
    return made[at]
end

dofile(os.getenv("WRK_SCRIPTS") .. "/report.lua")
