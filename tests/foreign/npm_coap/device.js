// A device that sends a reading, reads itself, observes its commands and answers the first one. Prints a line of JSON per step.
// node device.js <host> <port> <uid> <token>
const coap = require('coap')
const [host, port, uid, token] = process.argv.slice(2)
const query = `uid=${uid}&token=${token}`
const say = (step, response, payload) => console.log(JSON.stringify({ step, code: response.code, payload: String(payload || response.payload) }))

function send (method, pathname, options, payload) {
  return new Promise((resolve, reject) => {
    const request = coap.request({ host, port: Number(port), method, pathname, query, ...options })
    if (payload !== undefined) request.setOption('Content-Format', 'application/json')
    if (payload !== undefined && payload.length > 1024) request.setOption('Block1', Buffer.of(6))
    request.on('response', resolve)
    request.on('error', reject)
    request.end(payload)
  })
}

async function main () {
  const stored = await send('POST', '/telemetry', {}, Buffer.from(JSON.stringify({ temperature: 17.5 })))
  say('telemetry', stored)
  say('not confirmable', await send('POST', '/telemetry', { confirmable: false }, Buffer.from(JSON.stringify({ pressure: 2.5 }))))
  const now = Date.now()
  const many = Array.from({ length: 120 }, (_, i) => ({ ts: now - i, values: { block: i } }))
  say('blocks', await send('POST', '/telemetry', {}, Buffer.from(JSON.stringify(many))))
  say('refused', await send('POST', '/telemetry', {}, Buffer.from('temperature=1')))
  say('device', await send('GET', '/devices', {}))
  const watched = await send('GET', '/commands', { observe: true })
  watched.on('data', async (chunk) => {
    const command = JSON.parse(String(chunk))
    say('command', watched, chunk)
    if (!command.id) return
    const answer = await send('POST', `/commands/${command.id}`, {}, Buffer.from(JSON.stringify({ status: 'done', result: 'by npm' })))
    say('answered', answer)
    process.exit(0)
  })
}

main().catch((error) => { console.error(error); process.exit(1) })
