-- For wrk: sends the text BODY with each request.
wrk.method = "POST"
wrk.body = os.getenv("BODY")
wrk.headers["Content-Type"] = "application/json"
dofile(os.getenv("WRK_SCRIPTS") .. "/report.lua")
