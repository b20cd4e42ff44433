// What kafkajs sees of a cluster: records, a group, transactions, administration.
// Usage: node check.js BOOTSTRAP PREFIX

const { CompressionTypes, Kafka, logLevel } = require('kafkajs')

const [bootstrap, prefix] = process.argv.slice(2)
const topic = `${prefix}-js`
const groupId = `${prefix}-js-group`
const COUNT = 50

const kafka = new Kafka({
  clientId: 'trilog-interop',
  brokers: bootstrap.split(','),
  logLevel: logLevel.NOTHING,
})

function expect(found, wanted, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)]
  if (a !== b) throw new Error(`${what}: ${a} is not ${b}`)
}

async function produce() {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  for (let n = 0; n < COUNT; n++) {
    const message = { key: `k${n}`, value: `v${n}`, headers: { h: `${n}` } }
    await producer.send({ topic, compression: CompressionTypes.GZIP, messages: [message] })
  }
  await producer.disconnect()
}

async function transact() {
  const options = { transactionalId: `${prefix}-js-id`, idempotent: true, maxInFlightRequests: 1 }
  const producer = kafka.producer(options)
  await producer.connect()
  for (const end of ['abort', 'commit']) {
    const transaction = await producer.transaction()
    await transaction.send({ topic, messages: [{ key: 'a', value: end }] })
    await transaction[end]()
  }
  await producer.disconnect()
}

async function consume() {
  const consumer = kafka.consumer({ groupId })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  const seen = []
  await new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`only ${seen.length} records`)), 60000)
    const eachMessage = async ({ message }) => {
      seen.push(message.value.toString())
      if (seen.length === COUNT + 1) resolve()
    }
    consumer.run({ eachMessage }).catch(reject)
  })
  // What was processed last is committed as the consumer stops.
  await consumer.disconnect()
  return seen.sort()
}

async function main() {
  const admin = kafka.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: 3, replicationFactor: 3 }] })
  await produce()
  await transact()
  const wanted = [...Array(COUNT).keys()].map((n) => `v${n}`).concat('commit').sort()
  expect(await consume(), wanted, 'records')
  const [committed] = await admin.fetchOffsets({ groupId, topics: [topic] })
  const sum = committed.partitions.reduce((all, one) => all + Number(one.offset), 0)
  // Control records and what was aborted have offsets, too.
  if (sum < COUNT + 1) throw new Error(`only ${sum} committed`)
  const { groups } = await admin.describeGroups([groupId])
  expect(groups[0].state, 'Empty', 'state')
  await admin.deleteGroups([groupId])
  await admin.deleteTopics({ topics: [topic] })
  await admin.disconnect()
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error.message)
    process.exit(1)
  },
)
