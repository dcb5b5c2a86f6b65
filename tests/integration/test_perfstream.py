import time, statistics, threading, psutil
from tests.integration.test_live import *
from tests.integration.test_live import server, house
from tests.live import stream as mk
from iiot.services.ingest import ingest, Incoming
from iiot.payloads import Parsed
def run(uids, rate, seconds, batch=0.05):
    n=int(rate*batch); sent={}; t0=time.monotonic(); k=0; i=0; busy=0
    while time.monotonic()-t0<seconds:
        ms=[]
        now=clock.now_ms()
        for _ in range(n):
            u=uids[i%len(uids)]; i+=1
            ms.append(Incoming(u,Parsed(items=[(now+ (i//len(uids))%50,{"a":1.5,"b":float(i),"c":2.25})],rejected=[],ack=False),None,"mqtt","x",b""))
        b0=time.monotonic(); ingest(ms); busy+=time.monotonic()-b0; k+=1
        d=t0+k*batch-time.monotonic()
        if d>0: time.sleep(d)
    return i/(time.monotonic()-t0), busy/k
def test_perf(server, house, module_settings):
    p=[c for c in psutil.Process().children() if "iiot stream" in " ".join(c.cmdline())][0]
    import iiot.services.ingest as ing
    more=[factories.make_device(house.tenant).uid for _ in range(998)]
    uids=[d.uid for d in house.devices]+more
    for rate in (1000,):
        with listening(server.url, house.token, devices=[uids[0]]) as l:
            run(uids, rate, 2)
            c=p.cpu_times(); t=time.monotonic(); got=run(uids, rate, 6); d=p.cpu_times()
            print(f"rate {got[0]:.0f}/s batch commit {got[1]*1e3:.0f} ms stream cpu {(d.user+d.system-c.user-c.system)/(time.monotonic()-t):.3f} core")
            eventually(lambda: _lag()==0, 30)
    # latency
    lat=[]
    with listening(server.url, house.token, devices=uids[:50]) as l:
        seen={}
        orig=l._telemetry
        def tel(data):
            n=time.time()
            for k,vs in data["readings"].items():
                for ts,v in vs: seen.setdefault((data["device_id"],ts),n)
        l.client.on("telemetry", tel)
        stop=threading.Event()
        sent={}
        t0=time.monotonic(); k=0; i=0
        while time.monotonic()-t0<6:
            ms=[];now=clock.now_ms()
            for _ in range(50):
                u=uids[i%len(uids)]; i+=1
                ms.append(Incoming(u,Parsed(items=[(now,{"a":1.5,"b":float(i),"c":2.25})],rejected=[],ack=False),None,"mqtt","x",b""))
            ingest(ms); done=time.time()
            for m in ms: sent[m.uid,now]=(done)
            k+=1; d=t0+k*0.05-time.monotonic()
            if d>0: time.sleep(d)
        time.sleep(1)
        lat=sorted((seen[x]-sent[x])*1e3 for x in seen if x in sent)
        print("events",len(lat),"commit->browser p50 %.0f p95 %.0f max %.0f ms"%(lat[len(lat)//2],lat[int(len(lat)*.95)],lat[-1]))
    assert 0
from tests.integration.test_live import _lag
