package main

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// The namespace enforces it (base/namespace.yaml).
var level = api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}

func podTemplate(versioned runtime.Object) *corev1.PodTemplateSpec {
	switch each := versioned.(type) {
	case *appsv1.Deployment:
		return &each.Spec.Template
	case *appsv1.StatefulSet:
		return &each.Spec.Template
	case *batchv1.Job:
		return &each.Spec.Template
	}
	return nil
}

func restricted(versioned runtime.Object) []string {
	template := podTemplate(versioned)
	if template == nil {
		return nil
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return []string{err.Error()}
	}
	result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &template.ObjectMeta, &template.Spec))
	if result.Allowed {
		return nil
	}
	return []string{"not of the level restricted: " + result.ForbiddenDetail()}
}
