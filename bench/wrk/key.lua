-- For wrk: sends an API key.
wrk.headers["apikey"] = "bench-key"
dofile(os.getenv("WRK_SCRIPTS") .. "/report.lua")
