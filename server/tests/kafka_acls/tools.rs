//! Rights to what only tools of operators ask.

use super::*;

pub(super) fn rows() -> Vec<Row> {
    vec![
        row!(
            DescribeQuorum 2,
            [(CLUSTER, DESCRIBE) => NO_CLUSTER],
            DescribeQuorumRequest::default(),
            |answer: DescribeQuorumResponse| vec![answer.error_code]
        ),
        row!(
            UpdateFeatures 1,
            [(CLUSTER, ALTER) => NO_CLUSTER],
            UpdateFeaturesRequest::default().with_timeout_ms(1_000),
            |answer: UpdateFeaturesResponse| vec![answer.error_code]
        ),
        row!(
            ListConfigResources 1,
            [(CLUSTER, DESCRIBE_CONFIGS) => NO_CLUSTER],
            ListConfigResourcesRequest::default(),
            |answer: ListConfigResourcesResponse| vec![answer.error_code]
        ),
        row!(
            DescribeClientQuotas 1,
            [(CLUSTER, DESCRIBE_CONFIGS) => NO_CLUSTER],
            DescribeClientQuotasRequest::default(),
            |answer: DescribeClientQuotasResponse| vec![answer.error_code]
        ),
        row!(
            AlterClientQuotas 1,
            [(CLUSTER, ALTER_CONFIGS) => NO_CLUSTER],
            {
                let half = alter_client_quotas_request::EntityData::default().with_entity_type(text("user")).with_entity_name(Some(text("bob")));
                let op = alter_client_quotas_request::OpData::default().with_key(text("producer_byte_rate")).with_value(5.0);
                let entry = alter_client_quotas_request::EntryData::default().with_entity(vec![half]).with_ops(vec![op]);
                AlterClientQuotasRequest::default().with_entries(vec![entry]).with_validate_only(true)
            },
            |answer: AlterClientQuotasResponse| vec![answer.entries[0].error_code]
        ),
        row!(
            DescribeTopicPartitions 0,
            [(TOPICS, DESCRIBE) => NO_TOPIC],
            {
                let topic = describe_topic_partitions_request::TopicRequest::default().with_name(name());
                DescribeTopicPartitionsRequest::default().with_topics(vec![topic])
            },
            |answer: DescribeTopicPartitionsResponse| vec![answer.topics[0].error_code]
        ),
    ]
}
